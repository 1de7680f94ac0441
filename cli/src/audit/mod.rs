//! `husk audit`: what a running container, of any runtime of containerd's, or an OCI document allows.

mod document;
mod find;
mod report;
mod rules;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::document::Document;
use self::find::{Bundle, Shims};
use self::report::{Answer, Audited};
use self::rules::{Boundary, Severity};
use crate::check::containerd::Containerd;
use crate::host::Host;
use crate::terminal::{wants_colour, width};

/// The exit status if there is a finding as bad as `--fail-on`.
const FOUND: u8 = 1;
/// The exit status if something could not be audited.
const NOT_AUDITED: u8 = 2;

/// What may be asked.
#[derive(clap::Args)]
#[command(
    after_help = "What is judged is the OCI document, as the runtime got it: config.json of the bundle. Of a runtime \
    with virtual machines (husk, Kata) each finding says what the machine changes. The exit status is 0 if nothing is as \
    bad as --fail-on, 1 if something is, 2 if something could not be audited."
)]
pub struct Arguments {
    /// The container; without it, all that run
    #[arg(conflicts_with = "document")]
    id: Option<String>,
    /// containerd's namespace; without it, all of them
    #[arg(long, short, conflicts_with = "document")]
    namespace: Option<String>,
    /// A document instead of a container: config.json, or `-` for the standard input
    #[arg(long, value_name = "FILE")]
    document: Option<PathBuf>,
    /// The runtime that the document is meant for (husk, io.containerd.kata.v2); without it, one on the host's kernel
    #[arg(long, value_name = "NAME", requires = "document")]
    runtime: Option<String>,
    /// containerd's state directory; without it, the running one's
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "document")]
    state: Option<PathBuf>,
    /// The severity from which on the exit status is 1
    #[arg(long, value_name = "SEVERITY", value_enum, default_value = "high")]
    fail_on: Severity,
    /// Print JSON: an object with `version`, `fail_on`, `failed`, and `audited`, each with `namespace`, `id`, `document`,
    /// `runtime`, `boundary`, `error`, and `findings`, each with `id`, `severity`, `field`, `allows`, `remedy`, `in_machine`
    #[arg(long)]
    json: bool,
}

/// Why there is nothing to audit.
#[derive(Debug, thiserror::Error)]
enum AuditError {
    #[error("{0}")]
    List(String),
    #[error("no container {id} runs{}: `ctr namespaces ls` and `ctr -n NAMESPACE tasks ls` say which do", namespace.as_ref().map(|name| format!(" in the namespace {name}")).unwrap_or_default())]
    None { id: String, namespace: Option<String> },
    #[error("there is a container {id} in the namespaces {}: say which with --namespace", namespaces.join(" and "))]
    Several { id: String, namespaces: Vec<String> },
}

/// Audits.
pub fn run(arguments: &Arguments) -> ExitCode {
    let audited = match &arguments.document {
        Some(file) => Ok(vec![of_file(file, arguments.runtime.as_deref())]),
        None => of_containers(&Host::this(), arguments),
    };
    let audited = match audited {
        Ok(audited) => audited,
        Err(cause) => {
            crate::complain(&cause.to_string());
            return ExitCode::from(NOT_AUDITED);
        }
    };
    let bad = |audited: &Audited| audited.findings.iter().any(|finding| finding.severity >= arguments.fail_on);
    let failed = audited.iter().any(bad);
    let incomplete = audited.iter().any(|audited| audited.error.is_some());
    for audited in &audited {
        // The table has it in its place; a program's standard output is not read by a person.
        if let Some(error) = audited.error.as_ref().filter(|_| arguments.json) {
            crate::complain(error);
        }
    }
    let answer = Answer { version: husk_shim::VERSION, fail_on: arguments.fail_on, failed, audited };
    if arguments.json {
        crate::print_json(&answer);
    } else {
        crate::print(&report::text(&answer, width(), wants_colour()));
    }
    match (incomplete, failed) {
        (true, _) => ExitCode::from(NOT_AUDITED),
        (false, true) => ExitCode::from(FOUND),
        (false, false) => ExitCode::SUCCESS,
    }
}

/// A document of a file.
fn of_file(file: &Path, runtime: Option<&str>) -> Audited {
    let shown = file.display().to_string();
    let parsed = read(file)
        .map_err(|cause| format!("cannot read {shown}: {cause}"))
        .and_then(|text| Document::parse(&text).map_err(|cause| format!("{shown}: {cause}")));
    let boundary = runtime.map_or(Boundary::HostKernel, find::boundary);
    audited(None, shown, runtime.map(str::to_owned), boundary, parsed)
}

fn read(file: &Path) -> io::Result<Vec<u8>> {
    // A person may give a pipe, which a bundle never has.
    let source: Box<dyn Read> =
        if file == Path::new("-") { Box::new(io::stdin().lock()) } else { Box::new(File::open(file)?) };
    let mut text = Vec::new();
    source.take(find::MOST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > find::MOST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {} bytes", find::MOST)));
    }
    Ok(text)
}

fn of_containers(host: &Host, arguments: &Arguments) -> Result<Vec<Audited>, AuditError> {
    let state = arguments.state.clone().unwrap_or_else(|| Containerd::find(host).state(host));
    let mut bundles = find::bundles(&state).map_err(AuditError::List)?;
    let wanted = |bundle: &Bundle| {
        arguments.id.as_ref().is_none_or(|id| *id == bundle.id)
            && arguments.namespace.as_ref().is_none_or(|namespace| *namespace == bundle.namespace)
    };
    bundles.retain(wanted);
    if let (Some(id), [_, _, ..]) = (&arguments.id, &bundles[..]) {
        let namespaces = bundles.into_iter().map(|bundle| bundle.namespace).collect();
        return Err(AuditError::Several { id: id.clone(), namespaces });
    }
    let shims = find::shims(host);
    // One that has ended meanwhile is none any more.
    let audited: Vec<Audited> = bundles.iter().filter_map(|bundle| of_bundle(bundle, &shims)).collect();
    match &arguments.id {
        Some(id) if audited.is_empty() => {
            Err(AuditError::None { id: id.clone(), namespace: arguments.namespace.clone() })
        }
        _ => Ok(audited),
    }
}

fn of_bundle(bundle: &Bundle, shims: &Shims) -> Option<Audited> {
    let document = bundle.document().transpose()?;
    let runtime = document.as_ref().ok().and_then(|document| bundle.shim(document, shims)).map(str::to_owned);
    let boundary = runtime.as_deref().map_or(Boundary::HostKernel, find::boundary);
    let shown = bundle.path.join("config.json").display().to_string();
    Some(audited(Some(bundle), shown, runtime, boundary, document))
}

fn audited(
    bundle: Option<&Bundle>,
    file: String,
    runtime: Option<String>,
    boundary: Boundary,
    document: Result<Document, String>,
) -> Audited {
    let (findings, error) = match document {
        Ok(document) => (rules::judge(&document, boundary), None),
        Err(cause) => (Vec::new(), Some(cause)),
    };
    Audited {
        namespace: bundle.map(|bundle| bundle.namespace.clone()),
        id: bundle.map(|bundle| bundle.id.clone()),
        document: file,
        runtime,
        boundary,
        findings,
        error,
    }
}
