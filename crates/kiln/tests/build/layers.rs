//! Images of as many layers as there can be.

use crate::bench::{Bench, text};

#[test]
fn an_image_of_five_hundred_layers_is_built_and_run() {
    let Some(bench) = Bench::new() else { return };
    bench.write("context/file", "one");
    let copies: String = (1..500).map(|number| format!("COPY file /n{number}\n")).collect();
    let build = |copies: &str, more: &str| {
        bench.write("more", &format!("FROM bb\n{copies}{more}"));
        bench.run("store", &["build", "-q", "-t", "many", "-f", "more", "context"])
    };
    let made = build(&copies, "");
    assert!(made.status.success(), "{made:?}");
    let ran = bench.run("store", &["run", "--rm", "many", "sh", "-c", "set -- /n*; echo $#; echo x > /new"]);
    assert_eq!(text(&ran.stdout), "499\n", "{ran:?}");
    // A layer that comes twice is mounted once: what replaces a file is the same each time.
    let again = "COPY file /n2\n".repeat(3);
    let made = build(&copies.replace("COPY file /n2\nCOPY file /n3\n", &again), "");
    assert!(made.status.success(), "{made:?}");
    let count = bench.run("store", &["inspect", "-f", "{{len .RootFS.Layers}}", "many"]);
    assert_eq!(text(&count.stdout), "501\n", "{count:?}");
    let ran = bench.run("store", &["run", "--rm", "many", "sh", "-c", "set -- /n*; echo $#"]);
    assert_eq!(text(&ran.stdout), "498\n", "{ran:?}");
    for more in ["COPY file /new", "WORKDIR /new", "RUN echo in the step"] {
        let refused = build(&copies, &format!("{more}\n"));
        let told = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(
            told.contains("an image of 501 layers cannot be run: overlayfs stacks at most 500"),
            "{told}"
        );
    }
}
