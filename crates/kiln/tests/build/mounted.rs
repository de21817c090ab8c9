//! Steps over layers that are mounted where their tar is give what they give over unpacked ones.

use std::os::unix::fs::PermissionsExt as _;

use crate::bench::{Bench, text};

const DOCKERFILE: &str = "\
FROM bb AS source
COPY tree /srv/tree
RUN [ $(cat /srv/tree/d1/f7) = 7 ] && [ $(stat -c %a /srv/tree/d1/f7) = 640 ] && [ $(stat -c %h /srv/tree/d0/f0) = 1 ] \\
 && rm -r /srv/tree/d2 && mkdir /srv/tree/d2 && echo new > /srv/tree/d2/only && chmod 4711 /srv/tree/d1/f8 \\
 && mv /srv/tree/d3 /srv/tree/d9 && ln /srv/tree/d1/f9 /srv/tree/link
FROM bb
RUN --mount=type=bind,from=source,source=/srv,target=/mnt find /mnt -exec stat -c '%n %a %u %g %Y %h' {} + | sort > /sum && find /mnt -type f -exec md5sum {} + | sort >> /sum
RUN --mount=type=bind,from=source,source=/srv/tree,target=/mnt,rw echo x > /mnt/written && ln /mnt/d1/f7 /mnt/two
COPY --from=source /srv/tree /srv/tree
";

#[test]
fn mounted_layers_and_unpacked_ones_give_the_same_image() {
    let Some(bench) = Bench::new() else { return };
    for directory in 0..4 {
        let place = bench.path(&format!("context/tree/d{directory}"));
        fs_err::create_dir_all(&place).expect("made");
        for file in 0..10 {
            let path = place.join(format!("f{file}"));
            fs_err::write(&path, format!("{file}\n")).expect("written");
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("set");
        }
    }
    // Small foreign layers are unpacked: the base must not be one.
    fs_err::write(bench.path("image/large"), vec![b'x'; 17 << 20]).expect("written");
    let tar = std::process::Command::new("tar")
        .current_dir(bench.path("image"))
        .args(["-cf", "../image.tar", "."])
        .status();
    assert!(tar.expect("tar").success());
    bench.write("Dockerfile", DOCKERFILE);
    let build = |store: &str, layers: &str| {
        let imported = bench.kiln(store, &["import", "image.tar", "bb"]).env("KILN_LAYERS", layers).output();
        assert!(imported.expect("kiln").status.success());
        // The two do not happen in one second.
        let epoch = "SOURCE_DATE_EPOCH=1000000000";
        let words = ["build", "-q", "-t", "made", "--build-arg", epoch, "-f", "Dockerfile", "context"];
        let mut kiln = bench.kiln(store, &words);
        kiln.env("KILN_LAYERS", layers);
        let built = kiln.output().expect("kiln");
        assert!(built.status.success(), "{}", text(&built.stderr));
        let layers = bench.run(store, &["inspect", "-f", "{{json .RootFS.Layers}}", "made"]);
        let sum = bench.run(store, &["image", "cat", "made", "/sum"]);
        (text(&layers.stdout), text(&sum.stdout))
    };
    let (mounted, unpacked) = (build("mounted", "mounted"), build("unpacked", "unpacked"));
    assert_eq!(mounted.1, unpacked.1);
    // The bases are two imports of one tar, and every layer over them is the same.
    assert_eq!(mounted.0, unpacked.0);
    let wrong = bench.kiln("mounted", &["images"]).env("KILN_LAYERS", "both").output().expect("kiln");
    assert!(text(&wrong.stderr).contains("expected `mounted` or `unpacked`"), "{wrong:?}");
    bench.assert_nothing_goes_on("no marker");
}
