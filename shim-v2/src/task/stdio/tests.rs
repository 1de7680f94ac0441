use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;

use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::OpenOptions;

use rustix::fs::{FileType, Mode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const LONG: Duration = Duration::from_secs(30);

fn owner(directory: &TempDir) -> Owner<'_> {
    Owner { id: "c", namespace: "default", bundle: directory.path() }
}

/// More than is ever written: the end of all outputs.
const END: Positions = Positions { stdout: u64::MAX, stderr: u64::MAX };

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
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
    assert!(told.stdin_nonce.is_empty());
    let mut out = dial(&streams, &told.stdout_nonce).await;
    let err = dial(&streams, &told.stderr_nonce).await;
    // More than socket and fifo hold, so that it flows.
    let data: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let sent = data.clone();
    let writer = tokio::spawn(async move { out.write_all(&sent).await });
    assert!(!stdio.drained(END, Duration::from_millis(20)).await, "two outputs flow");
    let mut got = vec![0; data.len()];
    client.read_exact(&mut got).await.unwrap();
    assert!(got == data);
    writer.await.unwrap().unwrap();
    drop(err);
    assert!(stdio.drained(END, LONG).await);
}

#[tokio::test]
async fn input_ends_with_closeio_and_the_last_writer() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdin: fifo(&directory, "in"), ..Names::default() };
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
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
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
    let mut stream = dial(&streams, &told.stdout_nonce).await;
    stream.write_all(b"after").await.unwrap();
    drop(stream);
    assert!(stdio.drained(Positions { stdout: 5, stderr: 0 }, LONG).await);
    assert_eq!(std::fs::read(Path::new(&path)).unwrap(), b"before after");
}

#[tokio::test]
async fn what_comes_before_the_exit_is_drained_though_a_child_holds_the_stream() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: fifo(&directory, "out"), ..Names::default() };
    let mut client = OpenOptions::new().open_receiver(&names.stdout).unwrap();
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
    let mut out = dial(&streams, &told.stdout_nonce).await;
    out.write_all(b"last words").await.unwrap();
    assert!(stdio.drained(Positions { stdout: 10, stderr: 0 }, LONG).await);
    assert!(!stdio.drained(Positions { stdout: 11, stderr: 0 }, Duration::from_millis(20)).await);
    let mut got = [0; 10];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last words");
    stdio.close().await;
    assert_eq!(client.read(&mut got).await.unwrap(), 0, "our ends are closed");
}

#[tokio::test]
async fn a_file_takes_both_outputs() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new/log");
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: format!("file://{}", path.display()), ..Names::default() };
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
    let mut out = dial(&streams, &told.stdout_nonce).await;
    let mut err = dial(&streams, &told.stderr_nonce).await;
    out.write_all(b"one ").await.unwrap();
    assert!(stdio.drained(Positions { stdout: 4, stderr: 0 }, LONG).await);
    err.write_all(b"two").await.unwrap();
    assert!(stdio.drained(Positions { stdout: 4, stderr: 3 }, LONG).await);
    assert_eq!(std::fs::read(&path).unwrap(), b"one two");
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: "/nonexistent/fifo".into(), ..Names::default() };
    let cause = Stdio::open(&names, owner(&directory), &streams).await.unwrap_err().to_string();
    assert!(cause.contains("/nonexistent/fifo") && cause.contains("stdout"), "{cause}");
    let names = Names { stderr: "http://logger".into(), ..Names::default() };
    let cause = Stdio::open(&names, owner(&directory), &streams).await.unwrap_err();
    assert!(matches!(cause, StdioError::Uri { name: "stderr", .. }));
}

#[tokio::test]
async fn a_slow_reader_stalls_nothing_and_gets_every_byte() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: fifo(&directory, "out"), ..Names::default() };
    let path = names.stdout.clone();
    // Opened before the other end, which is opened here: it waits for nobody then.
    let reader = std::thread::spawn(move || {
        use std::io::Read;
        let mut file = std::fs::File::open(path).unwrap();
        let (mut got, mut piece) = (Vec::new(), [0; 1000]);
        loop {
            match file.read(&mut piece).unwrap() {
                0 => return got,
                count => got.extend_from_slice(&piece[..count]),
            }
        }
    });
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
    let out = dial(&streams, &told.stdout_nonce).await.into_std().unwrap();
    out.set_nonblocking(false).unwrap();
    // Pieces of all sizes: some are copied, some are moved.
    let sent: Vec<u8> = (0..8_000_000_u32).map(|n| (n ^ (n >> 9)).to_le_bytes()[0]).collect();
    let bytes = sent.clone();
    let writer = std::thread::spawn(move || {
        use std::io::Write;
        let (mut out, mut left, mut size) = (out, &bytes[..], 1);
        while !left.is_empty() {
            let (piece, rest) = left.split_at(size.min(left.len()));
            out.write_all(piece).unwrap();
            (left, size) = (rest, (size * 7 + 13) % 100_000);
        }
    });
    let all = Positions { stdout: u64::try_from(sent.len()).unwrap(), stderr: 0 };
    assert!(stdio.drained(all, LONG).await);
    writer.join().unwrap();
    drop(stdio);
    // The carriers end in this thread.
    while !reader.is_finished() {
        tokio::task::yield_now().await;
    }
    let got = reader.join().unwrap();
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
}

#[tokio::test]
async fn what_is_in_a_fifo_is_read_before_its_streams_are_closed() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let names = Names { stdout: fifo(&directory, "out"), ..Names::default() };
    let mut client = OpenOptions::new().open_receiver(&names.stdout).unwrap();
    let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
    let mut out = dial(&streams, &told.stdout_nonce).await;
    out.write_all(b"all of it").await.unwrap();
    assert!(stdio.drained(Positions { stdout: 9, stderr: 0 }, LONG).await);
    let mut closing = tokio::spawn(async move { stdio.close().await });
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut closing).await.is_err(), "it is not read yet");
    let mut part = [0; 4];
    client.read_exact(&mut part).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut closing).await.is_err(), "nor all of it");
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!([&part[..], &rest].concat(), b"all of it");
    closing.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_away_or_never_reads_holds_no_close_up() {
    let directory = tempfile::tempdir().unwrap();
    let streams = Arc::new(Streams::default());
    let closes = async |name: &str, reader: bool| {
        let names = Names { stdout: fifo(&directory, name), ..Names::default() };
        let client = reader.then(|| OpenOptions::new().open_receiver(&names.stdout).unwrap());
        let (stdio, told) = Stdio::open(&names, owner(&directory), &streams).await.unwrap();
        let mut out = dial(&streams, &told.stdout_nonce).await;
        out.write_all(b"all of it").await.unwrap();
        assert!(stdio.drained(Positions { stdout: 9, stderr: 0 }, LONG).await);
        (client, tokio::spawn(async move { stdio.close().await }), std::time::Instant::now())
    };
    let (_, closing, begin) = closes("nobody", false).await;
    closing.await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());
    let (client, mut closing, begin) = closes("leaves", true).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut closing).await.is_err(), "it may read yet");
    drop(client);
    closing.await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(900), "{:?}", begin.elapsed());
    let (_client, closing, begin) = closes("sleeps", true).await;
    closing.await.unwrap();
    assert!(begin.elapsed() > Duration::from_millis(900) && begin.elapsed() < Duration::from_secs(10));
}
