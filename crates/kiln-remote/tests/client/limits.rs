//! Servers that never end, never begin, or lie.

use std::io::Write;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use kiln_remote::{Answer, Client, Error};

use crate::server::{Server, fetch, read, reply, settings};

/// The same again and again, far beyond the limit of a mebibyte. It does end: a client that knows no limit is to fail the
/// test, not to read for ever.
fn pour(out: &mut dyn Write, again: &[u8]) {
    let mut sent = 0;
    while sent < 16 << 20 && out.write_all(again).is_ok() {
        sent += again.len();
    }
}

#[test]
fn endless_bodies_end_at_the_limit() {
    let server = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        pour(out, &[b'x'; 4096]);
    });
    assert!(matches!(fetch(&settings(), &server.url("/")), Err(Error::TooLarge { limit: 1_048_576, .. })));
    let announced = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n");
    });
    assert!(matches!(fetch(&settings(), &announced.url("/")), Err(Error::TooLarge { .. })));
    let chunked = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        pour(out, b"3\r\nabc\r\n");
    });
    assert!(matches!(fetch(&settings(), &chunked.url("/")), Err(Error::TooLarge { .. })));
    let headers = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\n");
        pour(out, b"X-Padding: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n");
    });
    assert!(matches!(fetch(&settings(), &headers.url("/")), Err(Error::Transport { .. })));
}

/// A compressed body without end that is nothing: members of gzip, or blocks of deflate, without a byte in them.
#[test]
fn endless_bodies_of_nothing_end_at_the_limit() {
    let member = gzipped(b"");
    let head = member[..10].to_vec();
    for (first, again) in [(Vec::new(), member.repeat(500)), (head, [0, 0, 0, 0xff, 0xff].repeat(1000))] {
        let server = Server::start(move |_, out| {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n");
            let _ = out.write_all(&first);
            pour(out, &again);
        });
        let found = fetch(&settings(), &server.url("/"));
        assert!(matches!(found, Err(Error::TooLarge { .. })), "{found:?}");
    }
}

/// It was stopped, or what it writes to was slow: that is no fault of the server's.
#[test]
fn a_reader_that_comes_late_finds_all() {
    let server = Server::start(|_, out| reply(out, "200 OK", &[], b"ten bytes!"));
    let settings = settings();
    let client = Client::new(&settings).expect("a client");
    let Ok(Answer::Body(mut body)) = client.get(&server.url("/"), None) else { panic!("no body") };
    std::thread::sleep(settings.limits.stall + Duration::from_millis(200));
    assert_eq!(read(&mut body).expect("read"), b"ten bytes!");
}

#[test]
fn silent_and_dripping_servers_are_left() {
    let start = Instant::now();
    let silent = Server::start(|_, _| std::thread::sleep(Duration::from_secs(600)));
    assert!(matches!(fetch(&settings(), &silent.url("/")), Err(Error::Stalled { .. })));
    let half = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        std::thread::sleep(Duration::from_secs(600));
    });
    assert!(matches!(fetch(&settings(), &half.url("/")), Err(Error::Stalled { .. })));
    let dripping = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while out.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(matches!(fetch(&settings(), &dripping.url("/")), Err(Error::Stalled { .. })));
    let headers = Server::start(|_, out| {
        while out.write_all(b"H").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(fetch(&settings(), &headers.url("/")).is_err());
    let informing = Server::start(|_, out| {
        while out.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    assert!(fetch(&settings(), &informing.url("/")).is_err());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    // One that is merely slow is waited for.
    let slow = Server::start(|_, out| {
        let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n");
        for _ in 0..4 {
            let _ = out.write_all(&[b'x'; 1000]);
            std::thread::sleep(Duration::from_millis(300));
        }
    });
    assert_eq!(fetch(&settings(), &slow.url("/")).unwrap().len(), 4000);
}

#[test]
fn what_is_cut_off_is_an_error() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ] {
        let server = Server::start(move |_, out| {
            let _ = out.write_all(answer);
        });
        let found = fetch(&settings(), &server.url("/"));
        assert!(
            matches!(found, Err(Error::Transport { .. })),
            "{:?}: {found:?}",
            String::from_utf8_lossy(answer)
        );
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_encoding_that_was_not_asked_for_is_undone() {
    let bomb = gzipped(&vec![0; 4 << 20]);
    let server = Server::start(move |head, out| {
        let body = match crate::server::path(head) {
            "/bomb" => bomb.clone(),
            "/cut" => gzipped(b"hello hello hello")[..20].to_vec(),
            "/no" => b"not compressed".to_vec(),
            _ => gzipped(b"hello"),
        };
        reply(out, "200 OK", &["Content-Encoding: gzip"], &body);
    });
    assert_eq!(fetch(&settings(), &server.url("/")).unwrap(), b"hello");
    assert!(matches!(fetch(&settings(), &server.url("/bomb")), Err(Error::TooLarge { .. })));
    assert!(fetch(&settings(), &server.url("/cut")).is_err());
    assert!(matches!(fetch(&settings(), &server.url("/no")), Err(Error::Encoding { .. })));
}

#[test]
fn a_download_can_be_stopped() {
    let server = Server::start(|head, out| {
        if crate::server::path(head) == "/body" {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\nbegun");
        }
        std::thread::sleep(Duration::from_secs(20));
    });
    let mut settings = settings();
    settings.limits.stall = Duration::from_secs(60);
    for path in ["/body", "/head"] {
        let client = Client::new(&settings).unwrap();
        let start = Instant::now();
        let stopper = client.clone();
        let stopping = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            stopper.stop();
        });
        let outcome = match client.get(&server.url(path), None) {
            Ok(Answer::Body(mut body)) => crate::server::read(&mut body),
            Ok(Answer::Unchanged) => panic!(),
            Err(error) => Err(error),
        };
        assert!(matches!(outcome, Err(Error::Stopped)), "{path}: {outcome:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{path}: {:?}", start.elapsed());
        stopping.join().unwrap();
        assert!(matches!(client.get(&server.url(path), None), Err(Error::Stopped)));
    }
}
