//! Rows of `system df`, in sum and in detail.

use jiff::Timestamp;
use serde_json::{Map, Value as Json};

use super::images::{Image, ImageRow};
use crate::format::template::TemplateFailure;
use crate::format::{Defaults, Fields, Layout, Row, all_fields, render_document};
use crate::units::{Clock, human_size, short_id, short_size};

/// One kind of thing that takes space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) count: u64,
    /// How many of them something uses now.
    pub(crate) active: u64,
    /// Bytes.
    pub(crate) size: u64,
    /// Bytes that removing what nothing uses gives back.
    pub(crate) reclaimable: u64,
}

/// One cache record or cache mount.
#[derive(Debug, Clone)]
pub(crate) struct CacheEntry {
    pub(crate) id: String,
    pub(crate) parents: Vec<String>,
    /// Docker's word: `regular`, `exec.cachemount`, `source.local`.
    pub(crate) kind: String,
    pub(crate) description: String,
    pub(crate) size: u64,
    pub(crate) created: Timestamp,
    pub(crate) last_used: Option<Timestamp>,
    pub(crate) uses: u64,
    pub(crate) in_use: bool,
    pub(crate) shared: bool,
}

/// Everything that `system df` tells. There are no volumes, and containers, which have no names, are counted and not listed:
/// their lines are there because scripts count on them.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskUsage {
    pub(crate) images: Usage,
    /// The layers as they came, which Docker does not keep.
    pub(crate) blobs: Usage,
    pub(crate) containers: Usage,
    pub(crate) cache: Usage,
    pub(crate) image_list: Vec<Image>,
    pub(crate) cache_list: Vec<CacheEntry>,
}

const TABLE: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
const RAW: &str = "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\nreclaimable: {{.Reclaimable}}\n";
const IMAGES: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";
const CACHE: &str =
    "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}";
const CONTAINERS_HEAD: &str = "CONTAINER ID\tIMAGE\tCOMMAND\tLOCAL VOLUMES\tSIZE\tCREATED\tSTATUS\tNAMES\n";
const VOLUMES_HEAD: &str = "VOLUME NAME\tLINKS\tSIZE\n";

impl DiskUsage {
    /// `system df`.
    pub(crate) fn summary(&self, format: Option<&str>) -> Result<String, TemplateFailure> {
        let rows = [
            UsageRow { kind: "Images", usage: self.images, share: true },
            UsageRow { kind: "Containers", usage: self.containers, share: true },
            UsageRow { kind: "Local Volumes", usage: Usage::default(), share: true },
            UsageRow { kind: "Build Cache", usage: self.cache, share: false },
            UsageRow { kind: "Layer Blobs", usage: self.blobs, share: true },
        ];
        Layout::read(format, Defaults { table: TABLE, raw: RAW }).render(&rows)
    }

    /// `system df -v`. A format other than `table` is applied once, to the document of all lists.
    pub(crate) fn details(&self, format: Option<&str>, clock: &Clock) -> Result<String, TemplateFailure> {
        let mut entries: Vec<&CacheEntry> = self.cache_list.iter().collect();
        entries.sort_by(|a, b| (a.last_used, &a.id).cmp(&(b.last_used, &b.id)));
        let table = matches!(format, None | Some("table"));
        let images: Vec<ImageRow<'_>> =
            self.image_list.iter().map(|image| ImageRow { image, full: !table, clock }).collect();
        let cache: Vec<CacheRow<'_>> =
            entries.into_iter().map(|entry| CacheRow { entry, full: !table, clock }).collect();
        match format {
            Some(format) if !table => {
                let document = [
                    ("Images", list(&images)),
                    ("Containers", Json::Array(Vec::new())),
                    ("Volumes", Json::Array(Vec::new())),
                    ("BuildCache", list(&cache)),
                ];
                let members: Map<String, Json> =
                    document.into_iter().map(|(name, list)| (name.to_owned(), list)).collect();
                // As in Docker: a document is no table, and the word is as good as not there.
                let format = format.strip_prefix("table ").unwrap_or(format);
                render_document(format, "disk usage", &Json::Object(members))
            }
            _ => {
                let align = crate::format::columns::align;
                Ok(format!(
                    "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}\nBuild cache usage: {}\n\n{}",
                    Layout::Table(IMAGES.to_owned()).render(&images)?,
                    align(CONTAINERS_HEAD),
                    align(VOLUMES_HEAD),
                    human_size(self.cache.size),
                    Layout::Table(CACHE.to_owned()).render(&cache)?,
                ))
            }
        }
    }
}

fn list<R: Row>(rows: &[R]) -> Json {
    let object = |row: &R| {
        Json::Object(all_fields(row).into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect())
    };
    rows.iter().map(object).collect()
}

struct UsageRow {
    kind: &'static str,
    usage: Usage,
    /// Whether RECLAIMABLE tells the share of the whole.
    share: bool,
}

impl Row for UsageRow {
    const SUBJECT: &'static str = "disk usage";
    const HEADERS: &'static [(&'static str, &'static str)] = &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
    ];

    fn fill(&self, fields: &mut Fields<'_>) {
        let Usage { count, active, size, reclaimable } = self.usage;
        fields.add("Active", || active.to_string());
        fields.add("Reclaimable", || {
            let free = human_size(reclaimable);
            match (u128::from(reclaimable) * 100).checked_div(u128::from(size)) {
                Some(percent) if self.share => format!("{free} ({percent}%)"),
                _ => free,
            }
        });
        fields.add("Size", || human_size(size));
        fields.add("TotalCount", || count.to_string());
        fields.add("Type", || self.kind.to_owned());
    }
}

struct CacheRow<'a> {
    entry: &'a CacheEntry,
    full: bool,
    clock: &'a Clock,
}

impl Row for CacheRow<'_> {
    const SUBJECT: &'static str = "a cache record";
    const HEADERS: &'static [(&'static str, &'static str)] = &[
        ("ID", "CACHE ID"),
        ("Parent", "PARENT"),
        ("CacheType", "CACHE TYPE"),
        ("Size", "SIZE"),
        ("CreatedSince", "CREATED"),
        ("LastUsedSince", "LAST USED"),
        ("UsageCount", "USAGE"),
        ("InUse", "IN USE"),
        ("Shared", "SHARED"),
        ("Description", "DESCRIPTION"),
    ];

    fn fill(&self, fields: &mut Fields<'_>) {
        let CacheEntry { id, parents, kind, description, size, created, last_used, uses, in_use, shared } =
            self.entry;
        let cut = |id: &str| if self.full { id.to_owned() } else { short_id(id).to_owned() };
        let mark = if *in_use { "*" } else { "" };
        fields.add("CacheType", || kind.clone());
        fields.add("CreatedAt", || self.clock.full(*created));
        fields.add("CreatedSince", || self.clock.since(*created));
        fields.add("Description", || description.clone());
        fields.add("ID", || format!("{}{mark}", cut(id)));
        fields.add("InUse", || in_use.to_string());
        fields.add("LastUsedAt", || last_used.map(|time| self.clock.full(time)).unwrap_or_default());
        fields.add("LastUsedSince", || last_used.map(|time| self.clock.since(time)).unwrap_or_default());
        fields.add("Parent", || cut(&parents.join(", ")));
        fields.add("Shared", || shared.to_string());
        fields.add("Size", || short_size(*size));
        fields.add("UsageCount", || uses.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::tz::TimeZone;

    fn clock() -> Clock {
        Clock { now: "2026-11-21T06:16:46Z".parse().unwrap(), zone: TimeZone::UTC }
    }

    fn usage() -> DiskUsage {
        let image = |name: &str, tag: &str, id: &str, created: &str, size, shared| Image {
            id: format!("sha256:{id}{}", "0".repeat(52)),
            repository: Some(name.to_owned()),
            tag: Some(tag.to_owned()),
            digest: Some(String::new()),
            created: created.parse().ok(),
            size,
            shared: Some(shared),
            containers: Some(0),
        };
        let entry = |id: &str, kind: &str, size, last_used: &str, uses, shared| CacheEntry {
            id: id.to_owned(),
            parents: Vec::new(),
            kind: kind.to_owned(),
            description: "mount / from exec /bin/sh -c echo > /x".to_owned(),
            size,
            created: "2026-11-21T06:15:36.965040062Z".parse().unwrap(),
            last_used: last_used.parse().ok(),
            uses,
            in_use: false,
            shared,
        };
        DiskUsage {
            images: Usage { count: 5, active: 0, size: 176_200_000, reclaimable: 176_200_000 },
            blobs: Usage { count: 4, active: 4, size: 90_000_000, reclaimable: 0 },
            containers: Usage::default(),
            cache: Usage { count: 2, active: 0, size: 345, reclaimable: 345 },
            image_list: vec![
                image("multi", "latest", "9e42ed78ec4e", "2026-11-21T06:15:38Z", 4_421_269, 4_421_262),
                image("debian", "bookworm-slim", "5b4baad5ec00", "2026-11-21T06:14:06Z", 163_900_000, 0),
            ],
            cache_list: vec![
                entry("x7ma82pll5pdz8sp7yt46l3pp", "source.local", 336, "2026-11-21T06:16:45.9Z", 1, false),
                entry("ibznzqr4f0uuadk79pej3sh27", "regular", 7, "2026-11-21T06:15:37.2Z", 1, true),
            ],
        }
    }

    #[test]
    fn summaries() {
        #[track_caller]
        fn check(format: Option<&str>, expect: &str) {
            assert_eq!(usage().summary(format).unwrap(), expect);
        }
        check(
            None,
            "TYPE            TOTAL     ACTIVE    SIZE      RECLAIMABLE\n\
             Images          5         0         176.2MB   176.2MB (100%)\n\
             Containers      0         0         0B        0B\n\
             Local Volumes   0         0         0B        0B\n\
             Build Cache     2         0         345B      345B\n\
             Layer Blobs     4         4         90MB      0B (0%)\n",
        );
        check(
            Some("json"),
            "{\"Active\":\"0\",\"Reclaimable\":\"176.2MB (100%)\",\"Size\":\"176.2MB\",\"TotalCount\":\"5\",\"Type\":\"Images\"}\n\
             {\"Active\":\"0\",\"Reclaimable\":\"0B\",\"Size\":\"0B\",\"TotalCount\":\"0\",\"Type\":\"Containers\"}\n\
             {\"Active\":\"0\",\"Reclaimable\":\"0B\",\"Size\":\"0B\",\"TotalCount\":\"0\",\"Type\":\"Local Volumes\"}\n\
             {\"Active\":\"0\",\"Reclaimable\":\"345B\",\"Size\":\"345B\",\"TotalCount\":\"2\",\"Type\":\"Build Cache\"}\n\
             {\"Active\":\"4\",\"Reclaimable\":\"0B (0%)\",\"Size\":\"90MB\",\"TotalCount\":\"4\",\"Type\":\"Layer Blobs\"}\n",
        );
        check(
            Some("table {{.Type}}\\t{{.Size}}"),
            "TYPE            SIZE\nImages          176.2MB\nContainers      0B\nLocal Volumes   0B\nBuild Cache     345B\nLayer Blobs     90MB\n",
        );
    }

    #[test]
    fn details() {
        let expect = "\
Images space usage:

REPOSITORY   TAG             IMAGE ID       CREATED              SIZE      SHARED SIZE   UNIQUE SIZE   CONTAINERS
multi        latest          9e42ed78ec4e   About a minute ago   4.42MB    4.421MB       7B            0
debian       bookworm-slim   5b4baad5ec00   2 minutes ago        164MB     0B            163.9MB       0

Containers space usage:

CONTAINER ID   IMAGE     COMMAND   LOCAL VOLUMES   SIZE      CREATED   STATUS    NAMES

Local Volumes space usage:

VOLUME NAME   LINKS     SIZE

Build cache usage: 345B

CACHE ID       CACHE TYPE     SIZE      CREATED              LAST USED            USAGE     SHARED
ibznzqr4f0uu   regular        7B        About a minute ago   About a minute ago   1         true
x7ma82pll5pd   source.local   336B      About a minute ago   1 second ago         1         false
";
        assert_eq!(usage().details(None, &clock()).unwrap(), expect);
    }

    #[test]
    fn detail_documents() {
        let render = |format| usage().details(Some(format), &clock()).unwrap();
        assert_eq!(render("table {{len .Images}}"), render("{{len .Images}}"));
        let json = render("{{json .}}");
        assert!(
            json.starts_with(
                "{\"Images\":[{\"Containers\":\"0\",\"CreatedAt\":\"2026-11-21 06:15:38 +0000 UTC\""
            ),
            "{json}"
        );
        assert!(
            json.contains("\"Containers\":[],\"Volumes\":[],\"BuildCache\":[{\"CacheType\":\"regular\""),
            "{json}"
        );
        assert!(json.contains("echo \\u003e /x"), "{json}");
        assert_eq!(render("{{range .Images}}{{.Repository}} {{end}}"), "multi debian ");
        assert_eq!(render("{{len .BuildCache}}"), "2");
        assert_eq!(render("{{(index .Images 0).UniqueSize}}"), "7B");
    }
}
