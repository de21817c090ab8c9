//! https: whose certificates are believed, and that nothing leaves it for http.

use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use kiln_remote::{Error, Settings};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::proxies::tunnel;
use crate::server::{Server, fetch, path, reply, settings};

fn certificate(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "certificates", name].iter().collect()
}

/// A server that may call itself localhost, 127.0.0.1 and kiln.invalid.
fn serve(answer: impl Fn(&str, &mut dyn Write) + Send + 'static) -> Server {
    let chain =
        CertificateDer::pem_file_iter(certificate("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(certificate("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let config = Arc::new(config);
    Server::over(answer, move |stream: TcpStream| {
        Box::new(StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream))
    })
}

fn trusting() -> Settings {
    Settings { bundle: Some(certificate("ca.pem")), ..settings() }
}

#[test]
fn certificates_are_checked() {
    let server = serve(|_, out| reply(out, "200 OK", &[], b"secret"));
    let url = format!("https://localhost:{}/", server.address.port());
    assert_eq!(fetch(&trusting(), &url).unwrap(), b"secret");
    assert_eq!(fetch(&trusting(), &format!("https://{}/", server.address)).unwrap(), b"secret");
    // A certificate of somebody else's, of another host, and nobody to ask.
    let stranger = Settings { bundle: Some(certificate("server.pem")), ..settings() };
    assert!(matches!(fetch(&stranger, &url), Err(Error::Transport { .. })));
    let renamed = format!("https://127.0.0.2:{}/", server.address.port());
    assert!(matches!(fetch(&trusting(), &renamed), Err(Error::Transport { .. })));
    assert!(matches!(fetch(&settings(), &url), Err(Error::NoBundle { .. })));
    let missing = Settings { bundle: Some(certificate("none.pem")), ..settings() };
    assert!(matches!(fetch(&missing, &url), Err(Error::Roots(_))));
    let empty = Settings { bundle: Some(certificate("server.key")), ..settings() };
    assert!(matches!(fetch(&empty, &url), Err(Error::NoRoots { .. })));
}

#[test]
fn https_is_not_left_for_http() {
    let plain = Server::start(|_, out| reply(out, "200 OK", &[], b"overheard"));
    let location = format!("Location: {}", plain.url("/"));
    let server = serve(move |head, out| match path(head) {
        "/down" => reply(out, "302 Found", &[&location], b""),
        "/stay" => reply(out, "302 Found", &["Location: //localhost/"], b""),
        _ => reply(out, "200 OK", &[], b"safe"),
    });
    let url = |path: &str| format!("https://localhost:{}{path}", server.address.port());
    assert!(matches!(fetch(&trusting(), &url("/down")), Err(Error::Redirect { .. })));
    assert!(plain.requests().is_empty());
    // The other way is fine, and so is staying.
    let up = format!("Location: {}", url("/"));
    let first = Server::start(move |_, out| reply(out, "301 Moved", &[&up], b""));
    assert_eq!(fetch(&trusting(), &first.url("/")).unwrap(), b"safe");
}

#[test]
fn https_is_tunnelled_through_a_proxy() {
    let server = serve(|_, out| reply(out, "200 OK", &[], b"tunnelled"));
    let proxy = tunnel(server.address);
    let mut settings = trusting();
    settings.proxies.https = Some(format!("http://{}", proxy.address));
    // This machine's own names are asked directly.
    assert_eq!(
        fetch(&settings, &format!("https://localhost:{}/", server.address.port())).unwrap(),
        b"tunnelled"
    );
    assert!(proxy.requests().is_empty());
    assert_eq!(fetch(&settings, "https://kiln.invalid/").unwrap(), b"tunnelled");
    assert_eq!(proxy.requests().len(), 1);
    assert!(
        proxy.requests()[0].starts_with("CONNECT kiln.invalid:443 HTTP/1.1\r\n"),
        "{:?}",
        proxy.requests()
    );
    let refused = fetch(&settings, "https://other.invalid/");
    assert!(matches!(refused, Err(Error::Transport { .. })), "{refused:?}");
    assert_eq!(server.requests().len(), 2);
}
