//! Compressed layers: the whole stream counts, members and frames may follow each other, anything else is refused.

mod support;

use std::io::{Read as _, Write as _};

use kiln_layer::{Compression, Error, Options, Walk, walk};
use kiln_oci::Digest;
use support::Tar;

fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = compression.encoder(Vec::new(), 6).expect("an encoder");
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("finished")
}

fn index(bytes: &[u8]) -> Result<Walk, Error> {
    walk(bytes, &Options::default())
}

/// The tar is read as a whole, and its digest is that of all its bytes.
#[track_caller]
fn whole(stream: &[u8], tar: &[u8]) {
    let walked = index(stream).expect("walked");
    assert_eq!(walked.diff_id.0, Digest::of(tar));
    assert_eq!((walked.tar_size, walked.blob_size), (tar.len() as u64, stream.len() as u64));
    assert_eq!(walked.blob, Digest::of(stream));
}

#[track_caller]
fn refused(stream: &[u8]) {
    match index(stream) {
        Err(Error::Decompress { .. } | Error::TrailingBytes { .. } | Error::Tar { .. }) => {}
        other => panic!("{other:?}"),
    }
}

fn tar() -> Vec<u8> {
    Tar::new().dir("d", 0o755).file("d/f", &[7; 3000]).file("g", b"text").end()
}

/// A skippable frame (RFC 8878, section 3.1.2).
fn skippable(content: &[u8]) -> Vec<u8> {
    [&0x184d_2a53_u32.to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// A frame of raw blocks whose header asks for a window of two to this power.
fn frame(window: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3];
    bytes.extend_from_slice(&((content.len() as u32) << 3 | 1).to_le_bytes()[..3]);
    bytes.extend_from_slice(content);
    bytes
}

#[test]
fn members_and_frames_are_one_stream() {
    let tar = tar();
    for compression in [Compression::Gzip, Compression::Zstd] {
        whole(&compressed(compression, &tar), &tar);
        for cut in [1, 512, 700, tar.len() - 1] {
            let (one, two) = tar.split_at(cut);
            let both = [compressed(compression, one), compressed(compression, two)].concat();
            whole(&both, &tar);
            // An empty one in between and at the end hides nothing.
            let empty = compressed(compression, b"");
            whole(&[&both[..], &empty].concat(), &tar);
        }
        // A second archive behind the first belongs to the digest, and no reader lists it.
        let second = Tar::new().file("smuggled", b"x").end();
        let both = [compressed(compression, &tar), compressed(compression, &second)].concat();
        whole(&both, &[&tar[..], &second].concat());
        assert!(index(&both).expect("walked").index.find(b"smuggled").expect("read").is_none());
    }
    let zstd = compressed(Compression::Zstd, &tar);
    let skipped = skippable(b"anything");
    for stream in [
        [&skipped[..], &zstd].concat(),
        [&zstd[..], &skipped].concat(),
        [&skipped[..], &skipped, &zstd, &skippable(b"")].concat(),
    ] {
        whole(&stream, &tar);
    }
}

#[test]
fn what_follows_or_lacks_is_refused() {
    let tar = tar();
    for compression in [Compression::Gzip, Compression::Zstd] {
        let stream = compressed(compression, &tar);
        for garbage in
            [&b"x"[..], b"\0", &[0; 512], b"garbage behind the end", &stream[..stream.len() / 2], &tar]
        {
            refused(&[&stream[..], garbage].concat());
        }
        for length in [stream.len() - 1, stream.len() - 5, stream.len() / 2, 7] {
            refused(&stream[..length]);
        }
        let mut flipped = stream.clone();
        // In gzip's checksum; in zstd's last block.
        *flipped.iter_mut().rev().nth(6).expect("long enough") ^= 0x10;
        assert!(index(&flipped).map_or(true, |walked| walked.diff_id.0 != Digest::of(&tar)));
    }
    let mut wrong = compressed(Compression::Gzip, &tar);
    let length = wrong.len();
    wrong[length - 8] ^= 1;
    refused(&wrong);
    let zstd = compressed(Compression::Zstd, &tar);
    refused(&[&zstd[..], &skippable(b"cut short")[..12]].concat());
    refused(&[&0x184d_2a53_u32.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &zstd].concat());
}

#[test]
fn windows_are_bounded() {
    let tar = tar();
    whole(&frame(27, &tar), &tar);
    for window in [28, 31, 41] {
        refused(&frame(window, &tar));
    }
}

#[test]
fn the_name_in_a_gzip_header_means_nothing() {
    let tar = tar();
    let mut encoder = flate2::GzBuilder::new()
        .filename("../../../../etc/passwd")
        .comment("c")
        .extra(vec![b'x'; 60_000])
        .write(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&tar).expect("compressed");
    whole(&encoder.finish().expect("finished"), &tar);
}

#[test]
fn other_programs_make_the_same_of_it() {
    let tar = tar();
    let stream =
        [compressed(Compression::Gzip, &tar[..700]), compressed(Compression::Gzip, &tar[700..])].concat();
    let mut gzip = match std::process::Command::new("gzip")
        .arg("-dc")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
    {
        Ok(gzip) => gzip,
        Err(error) => return support::skipped(&format!("gzip: {error}")),
    };
    gzip.stdin.take().expect("piped").write_all(&stream).expect("written");
    let mut found = Vec::new();
    gzip.stdout.take().expect("piped").read_to_end(&mut found).expect("read");
    assert!(gzip.wait().expect("ended").success());
    assert_eq!(Digest::of(&found), index(&stream).expect("walked").diff_id.0);
}
