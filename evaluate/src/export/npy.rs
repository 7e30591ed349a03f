//! Images in NumPy's file format, version 1.0.

use crate::{Error, Result};

/// The bytes of a file that holds `images` `[count, resolution, resolution, 3]` as `[count, 3, resolution,
/// resolution]`.
///
/// # Errors
/// A number of values that is not that of whole images.
pub fn images(images: &[f32], resolution: usize) -> Result<Vec<u8>> {
    let plane = resolution * resolution;
    if plane == 0 || images.is_empty() || !images.len().is_multiple_of(3 * plane) {
        return Err(Error::Input(format!("{} values are no whole images of {resolution} pixels", images.len())));
    }
    let count = images.len() / (3 * plane);
    let shape = format!("({count}, 3, {resolution}, {resolution})");
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version and length take 10 bytes; the values begin at a multiple of 64.
    let padding = (64 - (10 + header.len() + 1) % 64) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.into_bytes());
    for image in images.chunks_exact(3 * plane) {
        let values = (0..3 * plane).map(|place| image[place % plane * 3 + place / plane]);
        bytes.extend(values.flat_map(f32::to_le_bytes));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::images;

    #[test]
    fn values_follow_a_header_in_planes() {
        let bytes = images(&(0..24).map(|value| value as f32).collect::<Vec<_>>(), 2).unwrap();
        assert_eq!((bytes.len(), &bytes[..8]), (128 + 24 * 4, &b"\x93NUMPY\x01\x00"[..]));
        assert!(String::from_utf8_lossy(&bytes[10..128]).contains("'shape': (2, 3, 2, 2), }") && bytes[127] == b'\n');
        let values: Vec<f32> = bytes[128..].as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
        assert_eq!(values[..6], [0.0, 3.0, 6.0, 9.0, 1.0, 4.0]);
        assert!(images(&[0.0; 13], 2).is_err() && images(&[], 2).is_err());
    }
}
