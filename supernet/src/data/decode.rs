//! Decodes JPEG and PNG bytes to RGB, with bounds on the memory that a file may claim and a check that it is complete.
//!
//! Errors are plain sentences without a path, which the caller adds.

use super::jpeg_markers::JpegMarkers;
use super::{Image, jpeg_scan, regular};
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

/// Longest allowed side of an image, in pixels.
const MAX_SIDE: u32 = 16_384;
/// Most bytes that decoding one image may allocate.
const MAX_ALLOCATION: u64 = 512 << 20;
/// Bytes read from the start of a file to find its size in pixels; a file whose metadata is longer is read whole.
const HEAD: u64 = 128 << 10;
/// Bytes read from the end of a file to find its end mark.
const TAIL: u64 = 4 << 10;

/// Advice for an unreadable image.
pub(super) const WAY_OUT: &str =
    "repair or remove it, or skip unreadable images with --skip-bad or `skip_bad = true` in the configuration";

/// Checks the type, the dimensions and the end mark of a file without decoding it, and returns its decoded size in
/// bytes.
pub(super) fn probe(path: &Path) -> Result<usize, String> {
    let unreadable = |e: std::io::Error| format!("cannot be read: {e}");
    let length = regular::length(path)?;
    let mut file = File::open(path).map_err(unreadable)?;
    let mut head = Vec::new();
    (&mut file).take(HEAD).read_to_end(&mut head).map_err(unreadable)?;
    let format = format(&head)?;
    let mut tail = Vec::new();
    if length > HEAD {
        file.seek(SeekFrom::Start(length - TAIL.min(length))).map_err(unreadable)?;
        file.read_to_end(&mut tail).map_err(unreadable)?;
    }
    let ended = if length > HEAD { ends(&tail, format) } else { is_complete(&head, format) };
    let mut size = dimensions(&head, format);
    if length > HEAD && (!ended || size.is_none()) {
        // Long metadata before the picture, or foreign data after it, requires the whole file.
        let whole = std::fs::read(path).map_err(unreadable)?;
        size = dimensions(&whole, format);
        if !is_complete(&whole, format) {
            return Err(truncated(format));
        }
    } else if !ended {
        return Err(truncated(format));
    }
    let (width, height) = size.ok_or_else(|| format!("the {} header has no dimensions", name(format)))?;
    check_size(width, height)?;
    check_decoded(&head, format, width, height)?;
    Ok(width as usize * height as usize * 3)
}

/// Checks the type, the dimensions and the end mark of an image without decoding it, and returns its decoded size in
/// bytes.
pub(super) fn probe_bytes(bytes: &[u8]) -> Result<usize, String> {
    let format = format(bytes)?;
    if !is_complete(bytes, format) {
        return Err(truncated(format));
    }
    let size = dimensions(bytes, format);
    let (width, height) = size.ok_or_else(|| format!("the {} header has no dimensions", name(format)))?;
    check_size(width, height)?;
    check_decoded(bytes, format, width, height)?;
    Ok(width as usize * height as usize * 3)
}

/// Like [`decode`], but also refuses JPEG files whose picture data is recognisably truncated or damaged. The check
/// repeats part of the decoding, so it is only for opening a dataset.
pub(super) fn decode_checked(bytes: &[u8]) -> Result<Image<'static>, String> {
    if format(bytes)? == ImageFormat::Jpeg
        && let Some(reason) = jpeg_scan::fault(bytes)
    {
        return Err(reason);
    }
    decode(bytes)
}

/// Decodes a whole file. Grey, 16-bit and palette images become RGB u8, alpha is dropped, and the EXIF orientation is
/// applied.
pub(super) fn decode(bytes: &[u8]) -> Result<Image<'static>, String> {
    let format = format(bytes)?;
    if !is_complete(bytes, format) {
        // The JPEG decoder would silently fill missing data with grey.
        return Err(truncated(format));
    }
    // Excessive sizes are refused here, before a decoder sees them, so that the message is ours.
    if let Some((width, height)) = dimensions(bytes, format) {
        check_size(width, height)?;
    }
    let broken = |e: image::ImageError| format!("the {} data cannot be decoded: {e}", name(format));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    // Four channels of 16 bits take more than is kept of them.
    if decoder.total_bytes() > MAX_ALLOCATION {
        return Err(too_large(width, height));
    }
    let orientation = decoder.orientation().map_err(broken)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    let rgb = picture.into_rgb8();
    let (width, height) = (rgb.width() as usize, rgb.height() as usize);
    Ok(Image { width, height, pixels: Cow::Owned(rgb.into_raw()) })
}

/// Refuses a PNG file whose channels and depth take more memory than is kept of them.
fn check_decoded(head: &[u8], format: ImageFormat, width: u32, height: u32) -> Result<(), String> {
    // The header's depth and colour type stand behind the size.
    let (ImageFormat::Png, Some(&[depth, colour])) = (format, head.get(24..26).and_then(|two| two.first_chunk::<2>()))
    else {
        return Ok(());
    };
    let channels = match colour {
        0 => 1,
        4 => 2,
        6 => 4,
        _ => 3,
    };
    let bytes = u64::from(width) * u64::from(height) * channels * if depth == 16 { 2 } else { 1 };
    if bytes > MAX_ALLOCATION { Err(too_large(width, height)) } else { Ok(()) }
}

/// The format by content; the file's name is ignored.
fn format(head: &[u8]) -> Result<ImageFormat, String> {
    match image::guess_format(head) {
        Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => Ok(format),
        Ok(other) => Err(format!("is a {other:?} file; images must be JPEG or PNG, so convert it")),
        Err(_) if head.is_empty() => Err("is an empty file; images must be JPEG or PNG".into()),
        Err(_) => Err("is not an image; class folders may hold JPEG and PNG files only".into()),
    }
}

fn name(format: ImageFormat) -> &'static str {
    if format == ImageFormat::Png { "PNG" } else { "JPEG" }
}

fn truncated(format: ImageFormat) -> String {
    format!("is a truncated {} image: its end mark is missing", name(format))
}

fn too_large(width: u32, height: u32) -> String {
    let most = MAX_ALLOCATION >> 20;
    format!("has {width}x{height} pixels; the limits are {MAX_SIDE} a side and {most} MiB decoded, so scale it down")
}

/// Bounds of an image's size in pixels.
pub(super) fn check_size(width: u32, height: u32) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("has {width}x{height} pixels; an image needs at least one"));
    }
    if width > MAX_SIDE || height > MAX_SIDE || u64::from(width) * u64::from(height) * 3 > MAX_ALLOCATION {
        return Err(too_large(width, height));
    }
    Ok(())
}

/// Width and height from the header, if `bytes` reaches that far.
fn dimensions(bytes: &[u8], format: ImageFormat) -> Option<(u32, u32)> {
    if format == ImageFormat::Png {
        let field = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
        return Some((field(16)?, field(20)?));
    }
    let mut markers = JpegMarkers { bytes, at: 2 };
    loop {
        let (marker, body) = markers.next()?;
        // Frame headers are C0..CF without the tables C4 (Huffman), C8 (reserved) and CC (arithmetic).
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let side = |at: usize| Some(u32::from(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?])));
            // One byte of precision, then height, then width.
            return Some((side(3)?, side(1)?));
        }
    }
}

/// Whether the picture's data reaches its end mark. Data after the end mark is common and harmless.
fn is_complete(bytes: &[u8], format: ImageFormat) -> bool {
    if format == ImageFormat::Png {
        return ends(bytes, format);
    }
    // A search from the back could find the end of a thumbnail, so markers are followed from the start.
    let mut markers = JpegMarkers { bytes, at: 2 };
    while let Some((marker, _)) = markers.next() {
        if marker == 0xd9 {
            return true;
        }
    }
    false
}

fn ends(tail: &[u8], format: ImageFormat) -> bool {
    let mark: &[u8] = if format == ImageFormat::Png { b"IEND" } else { &[0xff, 0xd9] };
    tail.windows(mark.len()).rev().any(|window| window == mark)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use image::{ColorType, ImageEncoder, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};

    /// A JPEG file of `width` x `height` RGB pixels.
    pub fn jpeg(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let encoder = JpegEncoder::new_with_quality(&mut bytes, 100);
        encoder.write_image(pixels, width, height, ColorType::Rgb8.into()).unwrap();
        bytes
    }

    /// A PNG file of any colour type.
    pub fn png(width: u32, height: u32, pixels: &[u8], colour: ColorType) -> Vec<u8> {
        let mut bytes = Vec::new();
        PngEncoder::new(&mut bytes).write_image(pixels, width, height, colour.into()).unwrap();
        bytes
    }

    #[test]
    fn every_colour_type_becomes_rgb() {
        let grey = decode(&png(2, 1, &[7, 200], ColorType::L8)).unwrap();
        assert_eq!((grey.width, grey.height, &*grey.pixels), (2, 1, &[7, 7, 7, 200, 200, 200][..]));
        let alpha = decode(&png(1, 1, &[1, 2, 3, 0], ColorType::Rgba8)).unwrap();
        assert_eq!(&*alpha.pixels, &[1, 2, 3]);
        let deep: Vec<u8> = [0x1234u16, 0x5678, 0xffff].iter().flat_map(|v| v.to_ne_bytes()).collect();
        let deep = decode(&png(1, 1, &deep, ColorType::Rgb16)).unwrap();
        assert_eq!(&*deep.pixels, &[0x12, 0x56, 0xff]);
        let deep_grey = decode(&png(1, 1, &0x8181u16.to_ne_bytes(), ColorType::L16)).unwrap();
        assert_eq!(&*deep_grey.pixels, &[0x81; 3]);
        let grey_alpha = decode(&png(1, 1, &[9, 100], ColorType::La8)).unwrap();
        assert_eq!(&*grey_alpha.pixels, &[9; 3]);
        let print = decode(&cmyk_jpeg()).unwrap();
        assert_eq!((print.width, print.height, print.pixels.len()), (8, 8, 192));
        for (found, expected) in print.pixels.iter().zip([228u8, 128, 28].iter().cycle()) {
            assert!(found.abs_diff(*expected) <= 2, "{:?}", &print.pixels[..3]);
        }
    }

    /// 8x8 pixels of one colour in four inks, stored inverted (255 is no ink), as Adobe's programs do.
    pub fn cmyk_jpeg() -> Vec<u8> {
        let segment = |marker: u8, body: &[u8]| {
            let length = (body.len() as u16 + 2).to_be_bytes();
            [&[0xff, marker], &length[..], body].concat()
        };
        let mut bytes = vec![0xff, 0xd8];
        bytes.extend(segment(0xee, b"Adobe\0\x64\0\0\0\0\0"));
        bytes.extend(segment(0xdb, &[&[0][..], &[1; 64]].concat()));
        let inks: Vec<u8> = (1..=4).flat_map(|ink| [ink, 0x11, 0]).collect();
        bytes.extend(segment(0xc0, &[&[8, 0, 8, 0, 8, 4][..], &inks].concat()));
        // Differences of 0 or of 10 bits; an end of block.
        bytes.extend(segment(0xc4, &[&[0x00, 1, 1][..], &[0; 14], &[0, 10]].concat()));
        bytes.extend(segment(0xc4, &[&[0x10, 1][..], &[0; 15], &[0]].concat()));
        bytes.extend(segment(0xda, &[4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]));
        let mut bits = String::new();
        for level in [228, 128, 28, 255] {
            bits += &match 8 * (level - 128) {
                0 => "00".to_string(),
                difference if difference < 0 => format!("10{:010b}0", difference + 1023),
                difference => format!("10{difference:010b}0"),
            };
        }
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        for byte in bits.as_bytes().chunks(8) {
            let byte = byte.iter().fold(0, |byte, bit| byte << 1 | (bit - b'0'));
            bytes.push(byte);
            if byte == 0xff {
                bytes.push(0);
            }
        }
        bytes.extend([0xff, 0xd9]);
        bytes
    }

    #[test]
    fn probe_and_decode_agree_on_size_and_truncation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let pixels: Vec<u8> = (0..40 * 24 * 3).map(|i| (i * 31 % 251) as u8).collect();
        for bytes in [jpeg(40, 24, &pixels), png(40, 24, &pixels, ColorType::Rgb8)] {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(probe(&path).unwrap(), 40 * 24 * 3);
            let image = decode(&bytes).unwrap();
            assert_eq!((image.width, image.height), (40, 24));
            for cut in [bytes.len() / 2, bytes.len() - bytes.len() / 10, 30] {
                std::fs::write(&path, &bytes[..cut]).unwrap();
                assert!(probe(&path).unwrap_err().contains("truncated"));
                assert!(decode(&bytes[..cut]).unwrap_err().contains("truncated"));
            }
        }
    }

    #[test]
    fn long_metadata_and_trailing_data_are_fine() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let plain = jpeg(8, 8, &[90; 192]);
        // Application segments in front, each with an end mark of its own as thumbnails have, and foreign data behind.
        let mut bytes = plain[..2].to_vec();
        for _ in 0..3 {
            bytes.extend_from_slice(&[0xff, 0xe5, 0xff, 0xff]);
            bytes.extend(std::iter::repeat_n([0xff, 0xd9], 32766).flatten());
            bytes.push(0);
        }
        let cut = bytes.len() + 20;
        bytes.extend_from_slice(&plain[2..]);
        bytes.extend_from_slice(&[1; 6000]);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(probe(&path).unwrap(), 192);
        assert_eq!(decode(&bytes).unwrap().pixels.len(), 192);
        assert!(decode(&bytes[..cut]).unwrap_err().contains("truncated"));
    }

    #[test]
    fn foreign_and_giant_files_are_named() {
        assert!(decode(b"GIF89a......").unwrap_err().contains("Gif"));
        assert!(decode(b"hello").unwrap_err().contains("not an image"));
        let mut giant = png(1, 1, &[1, 2, 3], ColorType::Rgb8);
        giant[16..20].copy_from_slice(&20_000u32.to_be_bytes());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("giant.png");
        std::fs::write(&path, &giant).unwrap();
        assert!(probe(&path).unwrap_err().contains("20000x1"));
        assert!(decode(&giant).is_err());
        // Headers that claim ten gigabytes.
        giant[16..24].copy_from_slice(&[60_000u32.to_be_bytes(), 60_000u32.to_be_bytes()].concat());
        let mut photograph = jpeg(8, 8, &[90; 192]);
        let frame = photograph.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
        photograph[frame + 5..frame + 9].copy_from_slice(&[60_000u16.to_be_bytes(), 60_000u16.to_be_bytes()].concat());
        for bytes in [giant, photograph] {
            std::fs::write(&path, &bytes).unwrap();
            let reason = probe(&path).unwrap_err();
            assert!(reason.contains("60000x60000") && reason.contains("limits"), "{reason}");
            assert!(decode(&bytes).unwrap_err().contains("limits"));
        }
        for (bytes, reason) in [(&b""[..], "empty"), (&[0; 64], "not an image"), (b"BM......", "Bmp")] {
            std::fs::write(&path, bytes).unwrap();
            assert!(probe(&path).unwrap_err().contains(reason));
            assert!(decode(bytes).unwrap_err().contains(reason));
        }
    }
}
