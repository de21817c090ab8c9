//! Requests through proxies.

use std::io::{Read, Write};
use std::net::TcpStream;

use kiln_remote::Error;

use crate::server::{Server, fetch, read_head, reply, settings};

/// A name that no server has: whoever asks for it by itself fails.
const NOWHERE: &str = "http://kiln.invalid";

#[test]
fn plain_http_is_forwarded() {
    let proxy = Server::start(|_, out| reply(out, "200 OK", &[], b"by proxy"));
    let mut settings = settings();
    settings.proxies.http = Some(format!("http://user:word@{}", proxy.address));
    assert_eq!(fetch(&settings, &format!("{NOWHERE}:81/a?b")).unwrap(), b"by proxy");
    let head = &proxy.requests()[0];
    assert!(head.starts_with("GET http://kiln.invalid:81/a?b HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("Proxy-Authorization: Basic dXNlcjp3b3Jk\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("\r\nhost: kiln.invalid:81\r\n"), "{head}");
    // What NO_PROXY names, and this machine, is asked directly.
    let server = Server::start(|_, out| reply(out, "200 OK", &[], b"direct"));
    assert_eq!(fetch(&settings, &server.url("/")).unwrap(), b"direct");
    settings.proxies.direct = "invalid".to_owned();
    assert!(matches!(fetch(&settings, NOWHERE), Err(Error::Transport { .. })));
    assert_eq!(proxy.requests().len(), 1);
}

#[test]
fn each_redirect_has_its_own_proxy() {
    let server = Server::start(|_, out| reply(out, "200 OK", &[], b"direct"));
    let location = format!("Location: {}", server.url("/end"));
    let proxy = Server::start(move |_, out| reply(out, "302 Found", &[&location], b""));
    let mut settings = settings();
    settings.proxies.http = Some(format!("http://user:word@{}", proxy.address));
    assert_eq!(fetch(&settings, NOWHERE).unwrap(), b"direct");
    assert!(!server.requests()[0].to_ascii_lowercase().contains("authorization"), "{}", server.requests()[0]);
}

/// A proxy that lets https be tunnelled, and nothing else; everything leads to `to`.
pub(crate) fn tunnel(to: std::net::SocketAddr) -> Server {
    Server::over(
        |_, _| {},
        move |mut stream| {
            let head = read_head(&mut stream).unwrap_or_default();
            if !head.starts_with("CONNECT kiln.invalid:") {
                reply(&mut stream, "405 Method Not Allowed", &[], b"");
                return Box::new(Tunnelled(head, stream));
            }
            let mut there = TcpStream::connect(to).unwrap();
            stream.write_all(b"HTTP/1.1 200 Established\r\n\r\n").unwrap();
            let (mut up, mut down) = (stream.try_clone().unwrap(), there.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut up, &mut there));
            let copied = stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut down, &mut { copied }));
            Box::new(Tunnelled(head, stream))
        },
    )
}

/// Shows the server what was asked of the proxy.
pub(crate) struct Tunnelled(String, #[allow(dead_code)] TcpStream);

impl Read for Tunnelled {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(self.0.len());
        bytes[..count].copy_from_slice(&self.0.as_bytes()[..count]);
        self.0.drain(..count);
        Ok(count)
    }
}

impl Write for Tunnelled {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_proxy_that_makes_no_sense_is_refused() {
    for proxy in ["socks5://127.0.0.1:1", "::", "http://"] {
        let mut settings = settings();
        settings.proxies.https = Some(proxy.to_owned());
        assert!(matches!(fetch(&settings, NOWHERE), Err(Error::Proxy { .. })), "{proxy}");
    }
}
