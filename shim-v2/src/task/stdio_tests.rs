use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::OpenOptions;

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn fifo(directory: &TempDir, name: &str) -> String {
    let path = directory.path().join(name);
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The agent dials a stream.
async fn dial(streams: &Arc<Streams>, nonce: &[u8]) -> UnixStream {
    let (ours, theirs) = StdStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    streams.dialled(theirs.into());
    let mut ours = UnixStream::from_std(ours).unwrap();
    ours.write_all(nonce).await.unwrap();
    ours
}

#[tokio::test]
async fn every_byte_comes_out_before_it_is_drained() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: fifo(&directory, "out"), stderr: fifo(&directory, "err"), ..Names::default() };
    let mut client = OpenOptions::new().open_receiver(&names.stdout).unwrap();
    let (stdio, told) = Stdio::open(&names, &streams).unwrap();
    assert!(told.stdin_nonce.is_empty());
    let mut out = dial(&streams, &told.stdout_nonce).await;
    let err = dial(&streams, &told.stderr_nonce).await;
    // More than socket and fifo hold, so that it flows.
    let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let sent = data.clone();
    let writer = tokio::spawn(async move { out.write_all(&sent).await });
    assert!(!stdio.drained(Duration::from_millis(20)).await, "two outputs flow");
    let mut got = vec![0; data.len()];
    client.read_exact(&mut got).await.unwrap();
    assert!(got == data);
    writer.await.unwrap().unwrap();
    drop(err);
    assert!(stdio.drained(LONG).await);
}

#[tokio::test]
async fn input_ends_with_closeio_and_the_last_writer() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdin: fifo(&directory, "in"), ..Names::default() };
    let (stdio, told) = Stdio::open(&names, &streams).unwrap();
    let mut stream = dial(&streams, &told.stdin_nonce).await;
    // A client that comes and goes ends nothing.
    let mut client = OpenOptions::new().open_sender(&names.stdin).unwrap();
    client.write_all(b"first ").await.unwrap();
    drop(client);
    let mut client = OpenOptions::new().open_sender(&names.stdin).unwrap();
    client.write_all(b"second").await.unwrap();
    let mut got = [0; 12];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"first second");
    stdio.close_stdin();
    client.write_all(b"!").await.unwrap();
    drop(client);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"!");
}

#[tokio::test]
async fn a_file_is_written_at_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    std::fs::write(&path, "before ").unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: format!("file://{}", path.display()), ..Names::default() };
    let (stdio, told) = Stdio::open(&names, &streams).unwrap();
    let mut stream = dial(&streams, &told.stdout_nonce).await;
    stream.write_all(b"after").await.unwrap();
    drop(stream);
    assert!(stdio.drained(LONG).await);
    assert_eq!(std::fs::read(Path::new(&path)).unwrap(), b"before after");
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: "/nonexistent/fifo".into(), ..Names::default() };
    let cause = Stdio::open(&names, &streams).unwrap_err().to_string();
    assert!(cause.contains("/nonexistent/fifo") && cause.contains("stdout"), "{cause}");
    let names = Names { stderr: "binary:///logger?a=b".into(), ..Names::default() };
    assert!(matches!(Stdio::open(&names, &streams), Err(StdioError::Uri { name: "stderr", .. })));
}
