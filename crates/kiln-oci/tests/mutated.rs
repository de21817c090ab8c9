//! Manifests, indexes, configs and references that chance has changed: read or refused, never a panic. By hand:
//! `KILN_FUZZ_SEED=7 KILN_FUZZ_ROUNDS=5000000 cargo test --release -p kiln-oci --test mutated`.

use kiln_oci::{Digest, Document, ImageConfig, Platform, Reference, UserSpec, find_user};

const ROUNDS: u64 = 20_000;
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"annotations":{"a":"b"}},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"urls":["https://example.org/x"]}],"annotations":{"x":"y"}}"#;
const INDEX: &str = r#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"platform":{"architecture":"arm64","os":"linux","variant":"v8"}}]}"#;
const CONFIG: &str = r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{"User":"1:2","Env":["A=b"],"Cmd":["x"],"Entrypoint":["y"],"ExposedPorts":{"80/tcp":{}},"Volumes":{"/v":{}},"WorkingDir":"/w","Labels":{"a":"b"},"Healthcheck":{"Test":["CMD","x"],"Interval":1000000000},"OnBuild":["RUN x"],"StopSignal":"TERM"},"rootfs":{"type":"layers","diff_ids":["sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"]},"history":[{"created":"2024-01-01T00:00:00Z","created_by":"x"},{"created_by":"y","empty_layer":true}]}"#;
const REFERENCE: &str = "registry.example:5000/a/b_c:t.1";

fn next(state: &mut u64) -> usize {
    // xorshift64*.
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
}

fn mutate(state: &mut u64, bytes: &mut Vec<u8>) {
    const PIECES: [&[u8]; 14] = [
        b"null",
        b"{}",
        b"[]",
        b"-1",
        b"1e400",
        b"18446744073709551616",
        b"\"\\ud800\"",
        b"\"config\":{},",
        b"\"LAYERS\":[],",
        b",",
        b"\"",
        b"[[[[[[[[",
        b"\xff",
        b"\"layers\":[],",
    ];
    for _ in 0..1 + next(state) % 5 {
        if bytes.is_empty() {
            return;
        }
        let at = next(state) % bytes.len();
        let length = (next(state) % 40).min(bytes.len() - at);
        match next(state) % 5 {
            0 => bytes[at] = next(state) as u8,
            1 => drop(bytes.drain(at..at + length)),
            2 => drop(bytes.splice(at..at, PIECES[next(state) % PIECES.len()].iter().copied())),
            3 => drop(bytes.splice(at..at + length, PIECES[next(state) % PIECES.len()].iter().copied())),
            _ => {
                let part = bytes[at..at + length].to_vec();
                let to = next(state) % bytes.len();
                bytes.splice(to..to, part);
            }
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "how long and from where, as whoever runs the test wants it")]
fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn mutated_documents() {
    let first = variable("KILN_FUZZ_SEED").unwrap_or(1);
    let rounds = variable("KILN_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let mut read = 0;
    for seed in first..first + rounds {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let which = next(&mut state) % 4;
        let mut bytes = [MANIFEST, INDEX, CONFIG, REFERENCE][which].as_bytes().to_vec();
        mutate(&mut state, &mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        read += usize::from(match which {
            0 | 1 => Document::parse(None, &bytes).is_ok(),
            2 => ImageConfig::parse(&bytes).is_ok(),
            _ => text.parse::<Reference>().is_ok(),
        });
        let _ = (text.parse::<Digest>().is_ok(), text.parse::<Platform>().is_ok());
        let _ = find_user(&UserSpec::parse(&text), &bytes, &bytes);
    }
    assert!(read as u64 > rounds / 100, "{read} of {rounds}");
}

/// Depth costs stack: a parser that recurses without bound would die of it.
#[test]
fn nested_documents_are_refused() {
    for open in ["[", "{\"a\":"] {
        let deep = format!("{{\"schemaVersion\":2,\"manifests\":{}", open.repeat(500_000));
        assert!(Document::parse(None, deep.as_bytes()).is_err());
        assert!(ImageConfig::parse(deep.as_bytes()).is_err());
    }
    assert!(Document::parse(None, MANIFEST.as_bytes()).is_ok());
    assert!(Document::parse(None, INDEX.as_bytes()).is_ok());
    assert!(ImageConfig::parse(CONFIG.as_bytes()).is_ok());
}
