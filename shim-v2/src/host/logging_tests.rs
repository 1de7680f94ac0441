use std::fs;
use std::io::Read;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;

use super::*;

fn uri(scheme: &str, script: &str) -> LogUri {
    let query: String = form_urlencoded::Serializer::new(String::new()).append_pair("-c", script).finish();
    LogUri::parse(&format!("{scheme}:///bin/sh?{query}")).unwrap().unwrap()
}

async fn start(directory: &TempDir, scheme: &str, script: &str) -> Result<(Logger, Pipes), LoggingError> {
    Logger::start(&uri(scheme, script), "c1", "space", directory.path()).await
}

fn text(directory: &TempDir, name: &str) -> String {
    fs::read_to_string(directory.path().join(name)).unwrap()
}

/// Copies both streams to files.
const COPY: &str = "cat <&3 >out 5>&- & cat <&4 >err 5>&- & echo >&5; exec 5>&-; wait";

#[test]
fn a_uri_names_a_program_and_its_arguments() {
    let parse = |uri: &str| LogUri::parse(uri).unwrap().map(|uri| (uri.program, uri.arguments, uri.strict));
    let is = |program: &str, arguments: &[&str], strict| {
        Some((PathBuf::from(program), arguments.iter().map(|&argument| argument.to_owned()).collect(), strict))
    };
    assert_eq!(parse("binary:///usr/bin/logger"), is("/usr/bin/logger", &[], false));
    assert_eq!(parse("binary-v2:///usr/bin/logger?"), is("/usr/bin/logger", &[], true));
    assert_eq!(parse("BINARY:///a%20b/c?k=v"), is("/a b/c", &["k", "v"], false));
    // Go's url.Values: `+` is a space, a key without a value has an empty one, of a repeated key the first counts.
    let query = "binary:///l?z=1&a=2+3%26&flag&z=4&=x&&e=%C3%A4#fragment";
    assert_eq!(parse(query), is("/l", &["z", "1", "a", "2 3&", "flag", "", "", "x", "e", "ä"], false));
    for other in ["", "/run/fifo", "fifo:///run/fifo", "file:///log", "binaryx:///l"] {
        assert_eq!(parse(other), None, "{other}");
    }
    for wrong in ["binary://", "binary://logger", "binary://host/logger", "binary://?a=b", "binary-v2://x"] {
        let error = LogUri::parse(wrong).unwrap_err().to_string();
        assert!(error.contains(wrong) && error.contains("absolute path"), "{error}");
    }
    for wrong in ["binary:///a%00b", "binary:///a?b=%00"] {
        assert!(LogUri::parse(wrong).unwrap_err().to_string().contains("NUL"));
    }
}

#[tokio::test]
async fn it_gets_every_byte_of_both_streams_and_ends_by_itself() {
    for scheme in ["binary", "binary-v2"] {
        let directory = tempfile::tempdir().unwrap();
        let script = format!("tr '\\0' '\\n' </proc/$$/environ >environ; pwd >pwd; ls /proc/$$/fd >fds; {COPY}");
        let (logger, Pipes { stdout, stderr }) = start(&directory, scheme, &script).await.unwrap();
        let data: Vec<u8> = (0..250_000_u32).flat_map(u32::to_le_bytes).collect();
        let (mut out, mut err) = (Sender::from_owned_fd(stdout).unwrap(), Sender::from_owned_fd(stderr).unwrap());
        let (one, other) = tokio::join!(out.write_all(&data), err.write_all(b"error\n"));
        one.and(other).unwrap();
        drop((out, err));
        logger.end().await.unwrap();
        assert!(fs::read(directory.path().join("out")).unwrap() == data);
        assert_eq!(text(&directory, "err"), "error\n");
        let environ = text(&directory, "environ");
        let mut environ: Vec<&str> = environ.lines().collect();
        environ.sort_unstable();
        assert_eq!(environ, ["CONTAINER_ID=c1", "CONTAINER_NAMESPACE=space"]);
        assert_eq!(Path::new(text(&directory, "pwd").trim()), directory.path().canonicalize().unwrap());
        let fds = text(&directory, "fds");
        let mut fds: Vec<u32> = fds.lines().map(|fd| fd.parse().unwrap()).collect();
        // What the shell keeps for itself begins at 10.
        fds.retain(|fd| *fd < 10);
        fds.sort_unstable();
        assert_eq!(fds, [0, 1, 2, 3, 4, 5]);
    }
}

#[tokio::test]
async fn writing_to_one_that_does_not_read_never_blocks() {
    let directory = tempfile::tempdir().unwrap();
    let (_logger, pipes) = start(&directory, "binary", "exec 5>&-; exec sleep 1000").await.unwrap();
    for pipe in [&pipes.stdout, &pipes.stderr] {
        let written = loop {
            match rustix::io::write(pipe, &[0; 4096]) {
                Ok(_) => {}
                Err(cause) => break cause,
            }
        };
        assert_eq!(written, Errno::AGAIN);
    }
}

#[tokio::test]
async fn the_end_without_a_byte_is_ready_for_the_old_scheme_only() {
    let directory = tempfile::tempdir().unwrap();
    let (logger, _pipes) = start(&directory, "binary", "exit 7").await.unwrap();
    assert_eq!(logger.ended().await.unwrap(), How::Exited(7));
    let error = start(&directory, "binary-v2", "exit 7").await.unwrap_err().to_string();
    assert!(error.contains("/bin/sh") && error.contains("exit status 7"), "{error}");
    let error = start(&directory, "binary-v2", "exec 5>&-; exec sleep 1000").await.unwrap_err().to_string();
    assert!(error.contains("without saying that it is ready"), "{error}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let uri = LogUri::parse("binary:///nonexistent/logger").unwrap().unwrap();
    let error = Logger::start(&uri, "c1", "space", directory.path()).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/logger: No such file"), "{error}");
}

// The clock goes on as soon as there is nothing to do.
#[tokio::test(start_paused = true)]
async fn one_that_is_never_ready_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let error = start(&directory, "binary", "exec sleep 1000").await.unwrap_err().to_string();
    assert!(error.contains("was not ready in 12 s (limits.logger_s)"), "{error}");
}

#[tokio::test]
async fn one_that_ignores_its_end_is_told_and_then_killed() {
    let directory = tempfile::tempdir().unwrap();
    let (logger, pipes) = start(&directory, "binary", "exec 5>&-; exec sleep 1000").await.unwrap();
    drop(pipes);
    logger.end().await.unwrap();
    assert_eq!(logger.ended().await.unwrap(), How::Signalled(15));

    let fifo = directory.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let gone = std::thread::spawn(move || fs::File::open(fifo).unwrap().read_to_end(&mut Vec::new()));
    let stubborn = "trap '' TERM; exec 9>fifo; exec 5>&-; while true; do sleep 1000; done";
    let (logger, pipes) = start(&directory, "binary", stubborn).await.unwrap();
    drop(pipes);
    // From here on the clock goes on as soon as there is nothing to do.
    tokio::time::pause();
    let error = logger.end().await.unwrap_err().to_string();
    assert!(error.contains("did not end in 12 s"), "{error}");
    // Its children too.
    gone.join().unwrap().unwrap();
}

#[tokio::test]
async fn one_that_dies_breaks_the_pipe_and_says_how() {
    let directory = tempfile::tempdir().unwrap();
    let (logger, pipes) = start(&directory, "binary", "exec 5>&-; read line <&3; exit 4").await.unwrap();
    rustix::io::write(&pipes.stdout, b"line\n").unwrap();
    assert_eq!(logger.ended().await.unwrap(), How::Exited(4));
    assert_eq!(rustix::io::write(&pipes.stdout, b"more\n"), Err(Errno::PIPE));
    let error = logger.end().await.unwrap_err().to_string();
    assert!(error.contains("has ended with exit status 4"), "{error}");
}

#[tokio::test]
async fn it_does_not_outlive_the_shims_interest() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let gone = std::thread::spawn(move || fs::File::open(fifo).unwrap().read_to_end(&mut Vec::new()));
    let script = "exec 9>fifo; sleep 1000 5>&- & exec 5>&-; sleep 1000";
    let (logger, _pipes) = start(&directory, "binary", script).await.unwrap();
    drop(logger);
    gone.join().unwrap().unwrap();
}
