//! What is asked for, and where redirects lead.

use kiln_remote::{Answer, Client, Error, Known};

use crate::server::{Server, fetch, path, read, reply, settings};

#[test]
fn a_body_comes_with_what_is_known_of_it() {
    let server = Server::start(|_, out| {
        let headers = ["ETag: \"one\"", "Last-Modified: Sun, 09 Sep 2001 01:46:40 GMT"];
        reply(out, "200 OK", &headers, b"hello");
    });
    let client = Client::new(&settings()).unwrap();
    let Answer::Body(mut body) = client.get(&server.url("/x?y#z"), None).unwrap() else { panic!() };
    assert_eq!((body.length(), body.modified()), (Some(5), Some(1_000_000_000)));
    assert_eq!((body.tag(), body.place()), (Some("\"one\""), server.url("/x?y").as_str()));
    assert_eq!(read(&mut body).unwrap(), b"hello");
    let head = &server.requests()[0];
    assert!(head.starts_with("GET /x?y HTTP/1.1\r\n"), "{head}");
    assert!(head.to_ascii_lowercase().contains("user-agent: kiln-test/1\r\n"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
}

#[test]
fn tags_are_asked_about_where_they_were_given() {
    let server = Server::start(|head, out| {
        let asked = head.to_ascii_lowercase();
        match path(head) {
            "/304" | "/other" if asked.contains("if-none-match: \"a\"") => {
                reply(out, "304 Not Modified", &[], b"");
            }
            "/stubborn" => reply(out, "200 OK", &["ETag: \"a\""], b"same"),
            "/weak" => reply(out, "200 OK", &["ETag: W/\"a\""], b"like it"),
            "/moved" => reply(out, "302 Found", &["Location: /304"], b""),
            _ => reply(out, "200 OK", &["ETag: \"b\""], b"new"),
        }
    });
    let client = Client::new(&settings()).unwrap();
    let unchanged = |path: &str, place: &str| {
        let is_at = |found: &str| found == server.url(place);
        let known = Known { tag: "\"a\"", is_at: &is_at };
        matches!(client.get(&server.url(path), Some(known)).unwrap(), Answer::Unchanged)
    };
    assert!(unchanged("/304", "/304"));
    assert!(unchanged("/moved", "/304"));
    assert!(unchanged("/stubborn", "/stubborn"));
    assert!(!unchanged("/weak", "/weak"));
    assert!(!unchanged("/new", "/new"));
    // The chain ends elsewhere now, and a tag is one of its own resource.
    assert!(!unchanged("/moved", "/other"));
    assert!(!unchanged("/304", "/other"));
    assert!(!unchanged("/stubborn", "/other"));
    assert!(!server.requests().last().unwrap().to_ascii_lowercase().contains("if-none-match"));
    let weak = client.get(&server.url("/weak"), None).unwrap();
    assert!(matches!(weak, Answer::Body(body) if body.tag().is_none()));
    // An answer that nobody asked for.
    assert!(matches!(client.get(&server.url("/304"), None), Ok(Answer::Body(_))));
    let rude = Server::start(|_, out| reply(out, "304 Not Modified", &[], b""));
    assert!(matches!(client.get(&rude.url("/"), None), Err(Error::Status { status: 304, .. })));
}

#[test]
fn refusals_name_the_status() {
    let server = Server::start(|head, out| {
        let status = path(head).trim_start_matches('/').to_owned();
        reply(out, &format!("{status} Whatever"), &[], b"an error page");
    });
    for status in [300_u16, 301, 400, 401, 403, 404, 418, 500, 503] {
        match fetch(&settings(), &server.url(&format!("/{status}"))) {
            Err(Error::Status { status: found, .. }) => assert_eq!(found, status),
            other => panic!("{status}: {other:?}"),
        }
    }
}

#[test]
fn redirects_are_followed_to_a_limit() {
    let server = Server::start(|head, out| {
        let count: u32 = path(head).trim_start_matches('/').parse().unwrap();
        let next = format!("Location: {}", count.saturating_sub(1));
        match count {
            0 => reply(out, "200 OK", &[], b"here"),
            n if n % 2 == 0 => reply(out, "302 Found", &[&next], b""),
            _ => reply(out, "308 Permanent Redirect", &[&next], b""),
        }
    });
    assert_eq!(fetch(&settings(), &server.url("/10")).unwrap(), b"here");
    assert!(matches!(fetch(&settings(), &server.url("/11")), Err(Error::Redirects { limit: 10, .. })));
    assert_eq!(server.requests().len(), 11 + 11);
    let circle = Server::start(|_, out| reply(out, "301 Moved", &["Location: /"], b""));
    assert!(matches!(fetch(&settings(), &circle.url("/")), Err(Error::Redirects { .. })));
}

#[test]
fn redirects_lead_nowhere_but_to_servers() {
    for target in ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:1/", "data:,x", "http://"] {
        let location = format!("Location: {target}");
        let server = Server::start(move |_, out| reply(out, "302 Found", &[&location], b""));
        assert!(matches!(fetch(&settings(), &server.url("/")), Err(Error::Redirect { .. })), "{target}");
    }
}

#[test]
fn credentials_stay_with_their_host() {
    let other = Server::start(|_, out| reply(out, "200 OK", &[], b"elsewhere"));
    let location = format!("Location: {}", other.url("/"));
    let server = Server::start(move |head, out| match path(head) {
        "/away" => reply(out, "302 Found", &[&location], b""),
        "/here" => reply(out, "302 Found", &["Location: /end"], b""),
        _ => reply(out, "200 OK", &[], b"home"),
    });
    let url = |path: &str| server.url(path).replace("http://", "http://user:secret@");
    assert_eq!(fetch(&settings(), &url("/away")).unwrap(), b"elsewhere");
    assert_eq!(fetch(&settings(), &url("/here")).unwrap(), b"home");
    let sent = |head: &String| head.to_ascii_lowercase().contains("authorization: basic ");
    assert_eq!(server.requests().iter().map(sent).collect::<Vec<_>>(), [true, true, true]);
    assert!(!sent(&other.requests()[0]), "{}", other.requests()[0]);
    let failure = fetch(&settings(), "http://user:secret@127.0.0.1:1/").unwrap_err();
    let text = format!("{failure} {failure:?}");
    assert!(!text.contains("secret"), "{text}");
}
