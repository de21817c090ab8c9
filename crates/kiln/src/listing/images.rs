//! Rows of `images`.

use jiff::Timestamp;

use crate::format::{Defaults, Fields, Layout, Row};
use crate::units::{Clock, human_size, short_id, short_size};

/// What stands for a tag, a repository or a digest that is not there.
pub(crate) const NONE: &str = "<none>";

/// One name of one image.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The image ID, `sha256:` and 64 digits.
    pub(crate) id: String,
    /// The name in Docker's familiar form, or none.
    pub(crate) repository: Option<String>,
    pub(crate) tag: Option<String>,
    /// The manifest's digest, where one is known for this name.
    pub(crate) digest: Option<String>,
    pub(crate) created: Option<Timestamp>,
    /// Bytes of all layers.
    pub(crate) size: u64,
    /// Bytes of layers that other images have too, where they were counted.
    pub(crate) shared: Option<u64>,
    /// Containers made of it, where they were counted.
    pub(crate) containers: Option<u64>,
}

/// What `images` was asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ImagesStyle<'a> {
    pub(crate) format: Option<&'a str>,
    pub(crate) quiet: bool,
    pub(crate) digests: bool,
    pub(crate) full: bool,
}

impl ImagesStyle<'_> {
    /// The layout that these flags give.
    pub(crate) fn layout(&self) -> Layout {
        let quiet = self.quiet && matches!(self.format, None | Some("table"));
        if quiet {
            return Layout::Rows("{{.ID}}".to_owned());
        }
        let defaults = Defaults {
            table: if self.digests { TABLE_WITH_DIGESTS } else { TABLE },
            raw: match (self.quiet, self.digests) {
                (true, _) => "image_id: {{.ID}}",
                (false, true) => RAW_WITH_DIGESTS,
                (false, false) => RAW,
            },
        };
        match Layout::read(self.format, defaults) {
            Layout::Table(template) if self.digests && !template.contains("{{.Digest}}") => {
                Layout::Table(template + "\t{{.Digest}}")
            }
            layout => layout,
        }
    }

    /// The rows, ready to be laid out.
    pub(crate) fn rows<'r>(&self, images: &'r [Image], clock: &'r Clock) -> Vec<ImageRow<'r>> {
        images.iter().map(|image| ImageRow { image, full: self.full, clock }).collect()
    }
}

macro_rules! image_table {
    ($digest:literal) => {
        concat!(
            "{{.Repository}}\t{{.Tag}}\t",
            $digest,
            "{{.ID}}\t{{if .CreatedSince}}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}"
        )
    };
}

const TABLE: &str = image_table!("");
const TABLE_WITH_DIGESTS: &str = image_table!("{{.Digest}}\t");
const RAW: &str = "repository: {{.Repository}}\ntag: {{.Tag}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n";
const RAW_WITH_DIGESTS: &str = "repository: {{.Repository}}\ntag: {{.Tag}}\ndigest: {{.Digest}}\nimage_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n";

/// An image, as it is shown.
#[derive(Debug)]
pub(crate) struct ImageRow<'a> {
    pub(crate) image: &'a Image,
    /// Leaves the ID as long as it is.
    pub(crate) full: bool,
    pub(crate) clock: &'a Clock,
}

impl Row for ImageRow<'_> {
    const SUBJECT: &'static str = "an image";
    const HEADERS: &'static [(&'static str, &'static str)] = &[
        ("ID", "IMAGE ID"),
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("Containers", "CONTAINERS"),
        ("VirtualSize", "SIZE"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
    ];

    fn fill(&self, fields: &mut Fields<'_>) {
        let Image { id, repository, tag, digest, created, size, shared, containers } = self.image;
        let or_none = |text: &Option<String>| text.as_deref().unwrap_or(NONE).to_owned();
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "N/A".to_owned());
        fields.add("Containers", || or_unknown(containers.map(|count| count.to_string())));
        fields.add("CreatedAt", || created.map(|time| self.clock.seconds(time)).unwrap_or_default());
        fields.add("CreatedSince", || created.map(|time| self.clock.since(time)).unwrap_or_default());
        fields.add("Digest", || or_none(digest));
        fields.add("ID", || if self.full { id.clone() } else { short_id(id).to_owned() });
        fields.add("Repository", || or_none(repository));
        fields.add("SharedSize", || or_unknown(shared.map(human_size)));
        fields.add("Size", || short_size(*size));
        fields.add("Tag", || or_none(tag));
        fields.add("UniqueSize", || or_unknown(shared.map(|shared| human_size(size.saturating_sub(shared)))));
        fields.add("VirtualSize", || human_size(*size));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    pub(super) fn image(name: Option<(&str, &str)>, id: &str, created: &str, size: u64) -> Image {
        Image {
            id: format!("sha256:{id}{}", "0".repeat(52)),
            repository: name.map(|(repository, _)| repository.to_owned()),
            tag: name.map(|(_, tag)| tag.to_owned()),
            digest: None,
            created: created.parse().ok(),
            size,
            shared: None,
            containers: None,
        }
    }

    #[track_caller]
    fn check(style: ImagesStyle<'_>, expect: &str) {
        let clock = Clock { now: "2026-11-21T06:15:42Z".parse().unwrap(), zone: TimeZone::UTC };
        let mut multi = image(Some(("multi", "latest")), "9e42ed78ec4e", "2026-11-21T06:15:38Z", 4_421_269);
        multi.digest = Some("sha256:14ae".to_owned());
        let images = [
            image(None, "3eab6f0a198a", "2026-11-21T06:15:42Z", 7_797_760),
            multi,
            image(Some(("debian", "bookworm-slim")), "5b4baad5ec00", "2026-11-21T06:14:06Z", 163_900_000),
            image(Some(("busybox", "1.37")), "db287cb6be81", "", 4_421_262),
        ];
        assert_eq!(style.layout().render(&style.rows(&images, &clock)).unwrap(), expect);
    }

    #[test]
    fn tables() {
        check(
            ImagesStyle::default(),
            "REPOSITORY   TAG             IMAGE ID       CREATED                  SIZE\n\
             <none>       <none>          3eab6f0a198a   Less than a second ago   7.8MB\n\
             multi        latest          9e42ed78ec4e   4 seconds ago            4.42MB\n\
             debian       bookworm-slim   5b4baad5ec00   About a minute ago       164MB\n\
             busybox      1.37            db287cb6be81   N/A                      4.42MB\n",
        );
        check(
            ImagesStyle { digests: true, ..Default::default() },
            "REPOSITORY   TAG             DIGEST        IMAGE ID       CREATED                  SIZE\n\
             <none>       <none>          <none>        3eab6f0a198a   Less than a second ago   7.8MB\n\
             multi        latest          sha256:14ae   9e42ed78ec4e   4 seconds ago            4.42MB\n\
             debian       bookworm-slim   <none>        5b4baad5ec00   About a minute ago       164MB\n\
             busybox      1.37            <none>        db287cb6be81   N/A                      4.42MB\n",
        );
        check(
            ImagesStyle { format: Some("table {{.Repository}}\\t{{.Size}}"), ..Default::default() },
            "REPOSITORY   SIZE\n<none>       7.8MB\nmulti        4.42MB\ndebian       164MB\nbusybox      4.42MB\n",
        );
        let empty: [ImageRow<'_>; 0] = [];
        let text = ImagesStyle::default().layout().render(&empty).unwrap();
        assert_eq!(text, "REPOSITORY   TAG       IMAGE ID   CREATED   SIZE\n");
    }

    #[test]
    fn lines() {
        let ids = "3eab6f0a198a\n9e42ed78ec4e\n5b4baad5ec00\ndb287cb6be81\n";
        check(ImagesStyle { quiet: true, ..Default::default() }, ids);
        check(ImagesStyle { quiet: true, format: Some("table"), ..Default::default() }, ids);
        let raw = "image_id: 3eab6f0a198a\nimage_id: 9e42ed78ec4e\nimage_id: 5b4baad5ec00\nimage_id: db287cb6be81\n";
        check(ImagesStyle { quiet: true, format: Some("raw"), ..Default::default() }, raw);
        check(
            ImagesStyle {
                format: Some(
                    "{{.Repository}}:{{.Tag}} {{.Digest}} {{.CreatedAt}} {{.VirtualSize}} {{.SharedSize}} {{.Containers}}",
                ),
                ..Default::default()
            },
            "<none>:<none> <none> 2026-11-21 06:15:42 +0000 UTC 7.798MB N/A N/A\n\
             multi:latest sha256:14ae 2026-11-21 06:15:38 +0000 UTC 4.421MB N/A N/A\n\
             debian:bookworm-slim <none> 2026-11-21 06:14:06 +0000 UTC 163.9MB N/A N/A\n\
             busybox:1.37 <none>  4.421MB N/A N/A\n",
        );
    }

    #[test]
    fn json() {
        let clock = Clock { now: "2026-11-21T06:15:42Z".parse().unwrap(), zone: TimeZone::UTC };
        let style = ImagesStyle { format: Some("json"), full: true, ..Default::default() };
        let images = [image(None, "3eab6f0a198a", "2026-11-21T06:15:42Z", 7_797_760)];
        let rows = style.rows(&images, &clock);
        let expect = format!(
            r#"{{"Containers":"N/A","CreatedAt":"2026-11-21 06:15:42 +0000 UTC","CreatedSince":"Less than a second ago","Digest":"\u003cnone\u003e","ID":"sha256:3eab6f0a198a{}","Repository":"\u003cnone\u003e","SharedSize":"N/A","Size":"7.8MB","Tag":"\u003cnone\u003e","UniqueSize":"N/A","VirtualSize":"7.798MB"}}"#,
            "0".repeat(52)
        );
        assert_eq!(style.layout().render(&rows).unwrap(), expect + "\n");
    }
}
