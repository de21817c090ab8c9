-- Schema version 3 of kiln.db. This file is the definition (docs/formats.md, section 5).
-- Digests are 32-byte BLOBs, times are nanoseconds since the epoch. `boot` is the boot ID under which a file was
-- written and not yet synced, NULL once it is durable.

-- Blobs under blobs/sha256/: layers as they came, configs and manifests.
CREATE TABLE blobs (
  digest  BLOB PRIMARY KEY,           -- of the bytes as they are in the file
  size    INTEGER NOT NULL,           -- bytes
  boot    TEXT,
  created INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX blobs_unsynced ON blobs (boot) WHERE boot IS NOT NULL;

-- Layers that were walked: each has index/<hex of diff_id>.
CREATE TABLE layers (
  diff_id    BLOB PRIMARY KEY,
  tar_size   INTEGER NOT NULL,        -- bytes of the uncompressed tar
  files_size INTEGER NOT NULL,        -- bytes of regular files, hard links once
  entries    INTEGER NOT NULL,        -- entries in the tar
  stands_alone INTEGER NOT NULL,      -- 1: snapshot keyed by diff ID, 0: by chain ID
  writer     INTEGER NOT NULL,        -- version of the tar writer; 0: foreign
  index_size INTEGER NOT NULL,        -- bytes of the index file
  boot       TEXT,
  created    INTEGER NOT NULL,
  last_used  INTEGER NOT NULL,
  snapshot_is_source INTEGER NOT NULL -- 1: snapshot and index give the tar back, 0: its blobs are the only source
) WITHOUT ROWID;
CREATE INDEX layers_unsynced ON layers (boot) WHERE boot IS NOT NULL;

-- Which blobs hold a layer: as it came, or as it was made for a save or push.
CREATE TABLE layer_blobs (
  diff_id     BLOB NOT NULL REFERENCES layers (diff_id) ON DELETE CASCADE,
  blob        BLOB NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
  compression TEXT NOT NULL,          -- none, gzip, zstd, xz, bzip2
  PRIMARY KEY (diff_id, blob)
) WITHOUT ROWID;
CREATE INDEX layer_blobs_blob ON layer_blobs (blob);

-- Stacks of layers; the parent of a first layer is 32 zero bytes. A collection forgets those that are no stack, nor the
-- lower part of one, of an image, a record's result or a leased layer.
CREATE TABLE chains (
  chain_id BLOB PRIMARY KEY,
  parent   BLOB NOT NULL,
  diff_id  BLOB NOT NULL
) WITHOUT ROWID;

-- Unpacked layers under overlay2/.
CREATE TABLE snapshots (
  id        TEXT PRIMARY KEY,         -- directory name
  link      TEXT NOT NULL,            -- name in overlay2/l
  key       BLOB NOT NULL,            -- diff ID or chain ID, see layers.stands_alone
  ownership TEXT NOT NULL,            -- root, sub-ids (with `:` and a digest for other ranges than the store's first), single-id
  diff_id   BLOB NOT NULL,
  boot      TEXT,
  created   INTEGER NOT NULL,
  UNIQUE (key, ownership)
) WITHOUT ROWID;
CREATE INDEX snapshots_unsynced ON snapshots (boot) WHERE boot IS NOT NULL;
CREATE INDEX snapshots_layer ON snapshots (diff_id);

-- Images by ID (config digest).
CREATE TABLE images (
  id        BLOB PRIMARY KEY,
  config    BLOB NOT NULL,            -- the config's own bytes
  chain_id  BLOB NOT NULL,
  size      INTEGER NOT NULL,         -- sum of files_size over its layers
  created   INTEGER NOT NULL,         -- `created` of the config; the least number if it has none
  stored    INTEGER NOT NULL          -- when it came into this store
) WITHOUT ROWID;
-- Rows of this table hold configs: what a list tells is read from the index, which in older stores has no more than the chain.
CREATE INDEX images_chain ON images (chain_id, created, size);

CREATE TABLE image_layers (
  image    BLOB NOT NULL REFERENCES images (id) ON DELETE CASCADE,
  position INTEGER NOT NULL,          -- 0 is the bottom
  diff_id  BLOB NOT NULL,
  PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX image_layers_layer ON image_layers (diff_id);

-- Manifests as they came (or as kiln made them), for images whose layers have blobs.
CREATE TABLE manifests (
  digest     BLOB PRIMARY KEY,
  media_type TEXT NOT NULL,
  bytes      BLOB NOT NULL,
  image      BLOB NOT NULL REFERENCES images (id) ON DELETE CASCADE
) WITHOUT ROWID;
-- Rows of this table are large: what the layout tells is read from the index.
CREATE INDEX manifests_image ON manifests (image, media_type);

-- Names.
CREATE TABLE tags (
  name     TEXT PRIMARY KEY,          -- registry/repository:tag in full
  image    BLOB NOT NULL REFERENCES images (id),
  updated  INTEGER NOT NULL,
  manifest BLOB                       -- digest of the manifest that came under this name; NULL: the last that came with the image
) WITHOUT ROWID;
CREATE INDEX tags_image ON tags (image);

-- Operations of cache records: the first part of a key's preimage. A long environment is a row of its own, whose name is
-- empty (docs/formats.md, section 5).
CREATE TABLE operations (
  digest BLOB PRIMARY KEY,
  name   TEXT NOT NULL,               -- run, copy, ...; empty: a part of others
  json   BLOB NOT NULL
) WITHOUT ROWID;

-- Cache records. They outlive the data of their results; over 20,000, those that were used longest ago go.
CREATE TABLE records (
  key       BLOB PRIMARY KEY,
  operation BLOB NOT NULL REFERENCES operations (digest),
  result    BLOB NOT NULL,            -- chain ID of what the step gave; its chain is in chains
  layer     BLOB,                     -- diff ID of the layer that was made; NULL: none
  wall_time INTEGER NOT NULL,         -- nanoseconds
  bytes     INTEGER NOT NULL,         -- files_size of the layer
  created   INTEGER NOT NULL,
  last_used INTEGER NOT NULL,         -- to a day
  name      TEXT NOT NULL             -- the step as it was shown, at most 4 KiB of it
) WITHOUT ROWID;
CREATE INDEX records_operation ON records (operation);
CREATE INDEX records_layer ON records (layer);
CREATE INDEX records_last_used ON records (last_used);

CREATE TABLE record_inputs (
  key      BLOB NOT NULL REFERENCES records (key) ON DELETE CASCADE,
  position INTEGER NOT NULL,
  name     TEXT NOT NULL,
  selector TEXT NOT NULL,
  digest   BLOB NOT NULL,
  PRIMARY KEY (key, position)
) WITHOUT ROWID;

-- Directories of RUN --mount=type=cache under cache/.
CREATE TABLE cache_mounts (
  id        TEXT PRIMARY KEY,         -- ownership as of snapshots; NUL, the id as the Dockerfile says; NUL, +, what it begins with if that is not
                                      -- an empty directory of root's; NUL, the number of a private sibling
  directory TEXT NOT NULL UNIQUE,     -- name under cache/
  created   INTEGER NOT NULL,
  last_used INTEGER NOT NULL,
  filled    INTEGER NOT NULL          -- 0: its first content and owner are not complete yet
) WITHOUT ROWID;

-- What running commands use. A lease lives as long as tmp/<id>/lock is locked.
CREATE TABLE leases (
  id      TEXT PRIMARY KEY,
  command TEXT NOT NULL,
  created INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE lease_roots (
  lease  TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
  kind   TEXT NOT NULL,               -- layer, image, blob
  digest BLOB NOT NULL,
  PRIMARY KEY (lease, kind, digest)
) WITHOUT ROWID;
