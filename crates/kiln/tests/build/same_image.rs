//! An unchanged rebuild gives the same image ID, whatever happened to the cache in between.

use crate::bench::Bench;

impl Bench {
    /// The ID of what `Dockerfile` makes.
    #[track_caller]
    fn image_id(&self, words: &[&str]) -> String {
        let words: Vec<&str> = ["build", "-q", "-f", "Dockerfile"].iter().chain(words).copied().collect();
        let made = self.run("store", &[&words[..], &["context"]].concat());
        assert!(made.status.success(), "{made:?}");
        crate::bench::text(&made.stdout)
    }
}

#[test]
fn a_rebuild_is_that_of_the_last_build_that_made_something() {
    let Some(bench) = Bench::new() else { return };
    bench.write("context/file", "one");
    bench.write("Dockerfile", "FROM bb\nWORKDIR /d\nCOPY file /x\nRUN echo made > /made\nENV A=1\n");
    let first = bench.image_id(&[]);
    assert_eq!(bench.image_id(&[]), first);
    let anew = bench.image_id(&["--no-cache"]);
    assert_ne!(anew, first, "the times are others");
    assert_eq!(bench.image_id(&[]), anew);
    let anew = bench.image_id(&["--no-cache"]);
    assert_eq!(bench.image_id(&[]), anew);
    assert_eq!(bench.image_id(&["-t", "made"]), anew);
}

/// Records outlive their layers.
#[test]
fn what_a_collection_took_is_made_again_as_it_was() {
    let Some(bench) = Bench::new() else { return };
    bench.write("context/file", "one");
    bench.write("Dockerfile", "FROM bb\nCOPY file /x\nRUN echo made > /made && touch -d @1 /made /\n");
    let first = bench.image_id(&[]);
    for words in [&["image", "rm", first.trim()][..], &["system", "prune", "-f"]] {
        let done = bench.run("store", words);
        assert!(done.status.success(), "{done:?}");
    }
    let again = bench.run("store", &["build", "--progress=plain", "-f", "Dockerfile", "context"]);
    assert!(crate::bench::text(&again.stderr).contains("#3 DONE"), "{again:?}");
    assert!(crate::bench::text(&again.stderr).ends_with(&format!("\nwriting image {first}")), "{again:?}");
    assert_eq!(bench.image_id(&[]), first);
}
