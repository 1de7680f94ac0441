//! `exec`: one more process in a container.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{Capability, LinuxCapabilities, Process, User};

use super::args::{Flag, Words, switch, value};
use super::bundle::plan;
use super::create::preserved;
use super::error::{OciError, on};
use super::foreground::{self, Signals};
use super::state::{Status, Stored, parsed, write_pid};
use super::{console, keyring};
use crate::container::host::Entry;
use crate::container::{Cgroup, ProcessPlan};

/// Its flags.
pub(super) const FLAGS: &[Flag] = &[
    value(&["console-socket"]),
    value(&["pidfd-socket"]),
    value(&["cwd"]),
    value(&["env", "e"]),
    switch(&["tty", "t"]),
    value(&["user", "u"]),
    value(&["additional-gids", "g"]),
    value(&["process", "p"]),
    switch(&["detach", "d"]),
    value(&["pid-file"]),
    value(&["process-label"]),
    value(&["apparmor"]),
    switch(&["no-new-privs"]),
    value(&["cap", "c"]),
    value(&["preserve-fds"]),
    value(&["cgroup"]),
    switch(&["ignore-paused"]),
];

/// Runs it; returns its status, or 0 if it is left to itself.
pub(super) fn exec(root: &Path, words: &Words) -> Result<u8, OciError> {
    let [id, args @ ..] = words.rest.as_slice() else {
        return Err("exec: a container's id and a program are wanted".into());
    };
    let preserved = preserved(words)?;
    let container = Stored::open(root, id)?;
    for flag in ["process-label", "apparmor", "pidfd-socket"] {
        if words.value(flag).is_some_and(|value| !value.is_empty() && value != "unconfined") {
            return Err(format!("exec: --{flag} cannot be done here").into());
        }
    }
    let process = ProcessPlan::new(process(words, args, &container)?)?;
    let detach = words.has("detach");
    console::check(process.has_terminal(), detach, words.value("console-socket"))?;
    match container.status() {
        Status::Stopped => return Err("cannot exec in a stopped container".into()),
        Status::Paused if !words.has("ignore-paused") => {
            return Err("cannot exec in a paused container (use --ignore-paused to override)".into());
        }
        _ => {}
    }
    let init = container.init().ok_or("cannot exec in a stopped container")?;
    let plan = plan(&container.document, &container.record.bundle, id)?;
    let cgroup = cgroup(&container, words)?;
    let signals = (!detach).then(Signals::hold).transpose().map_err(|cause| format!("cannot take signals: {cause}"))?;
    keyring::join(id);
    let entry = Entry {
        process: &process,
        plan: &plan,
        init: &init,
        init_pid: container.record.pid,
        cgroup: &cgroup,
        preserved,
    };
    let made = entry.run()?;
    let ready = || {
        if let (Some(terminal), Some(socket)) = (&made.terminal, words.value("console-socket")) {
            console::send(Path::new(socket), terminal)?;
        }
        words.value("pid-file").map_or(Ok(()), |file| write_pid(Path::new(file), made.pid))
    };
    if let Err(cause) = ready() {
        // The only error is that it has ended.
        let _ = rustix::process::pidfd_send_signal(&made.pidfd, rustix::process::Signal::KILL);
        return Err(cause);
    }
    signals.map_or(Ok(0), |signals| foreground::attend(&made, &signals))
}

/// The group that it is made in: the container's, or one below it.
fn cgroup(container: &Stored, words: &Words) -> Result<Cgroup, OciError> {
    let Some(given) = words.value("cgroup") else { return Ok(container.cgroup()) };
    let below = Path::new(given.trim_start_matches('/'));
    let path = container.record.cgroup.join(below);
    let stays = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if !stays || !path.is_dir() {
        return Err(format!("exec: --cgroup {given:?}: there is no such group below the container's").into());
    }
    Ok(Cgroup::at(&path))
}

/// What it is to be: a document of its own, or the container's with what the flags say.
fn process(words: &Words, args: &[String], container: &Stored) -> Result<Process, OciError> {
    if let Some(path) = words.value("process") {
        let text = fs::read(path).map_err(on("read", Path::new(path)))?;
        return parsed(text, Path::new(path), "/capabilities").map(|(process, _)| process);
    }
    if args.is_empty() {
        return Err("exec: process args cannot be empty".into());
    }
    let mut process = container.document.process().clone().unwrap_or_default();
    process.set_args(Some(args.to_vec()));
    process.set_terminal(Some(words.has("tty")));
    if let Some(cwd) = words.value("cwd") {
        process.set_cwd(cwd.into());
    }
    let mut env = process.env().clone().unwrap_or_default();
    for variable in words.values("env") {
        if !variable.contains('=') {
            return Err(format!("exec: --env {variable:?}: it has to be key=value").into());
        }
        env.push(variable.to_owned());
    }
    process.set_env(Some(env));
    if words.has("no-new-privs") {
        process.set_no_new_privileges(Some(true));
    }
    let user = user(process.user(), words)?;
    process.set_user(user);
    let capabilities = capabilities(process.capabilities().clone().unwrap_or_default(), words)?;
    process.set_capabilities(Some(capabilities));
    Ok(process)
}

/// `--user UID[:GID]` and `--additional-gids`.
fn user(of: &User, words: &Words) -> Result<User, OciError> {
    let mut user = of.clone();
    let number = |flag: &str, text: &str| -> Result<u32, OciError> {
        text.parse().map_err(|_| format!("exec: --{flag} {text:?}: it has to be a number").into())
    };
    if let Some(given) = words.value("user") {
        let (id, group) = given.split_once(':').map_or((given, None), |(id, group)| (id, Some(group)));
        user.set_uid(number("user", id)?);
        if let Some(group) = group {
            user.set_gid(number("user", group)?);
        }
    }
    let more = words.values("additional-gids").flat_map(|list| list.split(','));
    let more = more.map(|group| number("additional-gids", group)).collect::<Result<Vec<_>, _>>()?;
    if !more.is_empty() {
        let mut groups = user.additional_gids().clone().unwrap_or_default();
        groups.extend(more);
        user.set_additional_gids(Some(groups));
    }
    Ok(user)
}

/// `--cap`, on top of what the container has.
fn capabilities(of: LinuxCapabilities, words: &Words) -> Result<LinuxCapabilities, OciError> {
    let mut sets = of;
    for name in words.values("cap") {
        let capability: Capability = serde_json::from_slice(format!("{name:?}").as_bytes())
            .map_err(|_| format!("exec: --cap {name:?}: there is no such capability"))?;
        let with = |set: &Option<std::collections::HashSet<Capability>>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        sets.set_bounding(with(sets.bounding()));
        sets.set_effective(with(sets.effective()));
        sets.set_permitted(with(sets.permitted()));
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::args::Flags;

    fn words(words: &[&str]) -> Words {
        Words::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>(), FLAGS, Flags::InFront).unwrap()
    }

    #[test]
    fn users_are_numbers() {
        let of = |flags: &[&str]| {
            user(&User::default(), &words(flags))
                .map(|user| (user.uid(), user.gid(), user.additional_gids().clone().unwrap_or_default()))
        };
        assert_eq!(of(&["--user", "7"]).unwrap(), (7, 0, vec![]));
        assert_eq!(of(&["-u", "7:8", "-g", "9,10", "-g", "11"]).unwrap(), (7, 8, vec![9, 10, 11]));
        assert!(of(&["--user", "root"]).unwrap_err().to_string().contains("--user \"root\""));
        assert!(of(&["--user", "1:x"]).is_err());
    }

    #[test]
    fn capabilities_come_on_top() {
        let sets = capabilities(LinuxCapabilities::default(), &words(&["--cap", "CAP_SYS_TIME"])).unwrap();
        assert!(sets.effective().as_ref().is_some_and(|set| set.contains(&Capability::SysTime)));
        let error = capabilities(LinuxCapabilities::default(), &words(&["--cap", "CAP_NO"])).unwrap_err();
        assert!(error.to_string().contains("CAP_NO"));
    }
}
