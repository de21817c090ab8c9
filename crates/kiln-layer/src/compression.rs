//! How a layer is compressed: found by its first bytes, undone as a stream, done deterministically.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use crate::error::{Error, Result};

/// A compression of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// None at all.
    Plain,
    /// RFC 1952, one or more members.
    Gzip,
    /// RFC 8878, one or more frames.
    Zstd,
    /// xz, one or more streams.
    Xz,
    /// bzip2, one or more streams.
    Bzip2,
}

/// The largest window that a zstd frame may ask for, as a power of two: 128 MiB, the zstd program's own limit.
const ZSTD_WINDOW: u32 = 27;

/// The most memory that an xz stream may ask for, in KiB: what `xz -9` needs, several times over.
const XZ_MEMORY: u32 = 512 << 10;

impl Compression {
    /// What the first bytes of a stream say; six are enough.
    pub fn detect(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame (RFC 8878, section 3.1.2) may come first.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::Plain,
        }
    }

    /// The name of the format, as the field uses it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }

    /// Undoes the compression of the whole stream. What follows the last member must be another one; anything else is an
    /// error of the reader.
    ///
    /// # Errors
    /// When the decoder cannot start.
    pub fn decoder<'a, R: BufRead + Send + 'a>(self, reader: R) -> Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::Plain => Box::new(reader),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(Error::Read)?;
                decoder.window_log_max(ZSTD_WINDOW).map_err(Error::Read)?;
                Box::new(decoder)
            }
            Self::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_MEMORY)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        })
    }

    /// Compresses a stream; the bytes depend on input, level and library version alone.
    ///
    /// # Errors
    /// When kiln does not write this compression, or the encoder cannot start.
    pub fn encoder<W: Write>(self, writer: W, level: i32) -> io::Result<Encoder<W>> {
        Ok(match self {
            Self::Plain => Encoder::Plain(writer),
            Self::Gzip => {
                let level = flate2::Compression::new(u32::try_from(level.clamp(0, 9)).unwrap_or(6));
                // No name and no time in the header; operating system "unknown".
                Encoder::Gzip(flate2::GzBuilder::new().mtime(0).operating_system(255).write(writer, level))
            }
            Self::Zstd => Encoder::Zstd(zstd::stream::write::Encoder::new(writer, level)?),
            Self::Xz | Self::Bzip2 => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "kiln writes gzip and zstd only"));
            }
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A stream being compressed; it must be [finished](Self::finish).
pub enum Encoder<W: Write> {
    /// Passed through.
    Plain(W),
    /// gzip, one member.
    Gzip(flate2::write::GzEncoder<W>),
    /// zstd, one frame.
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Writes the end of the stream and gives the writer back.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(mut writer) => writer.flush().map(|()| writer),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(writer) => writer.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(writer) => writer.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}
