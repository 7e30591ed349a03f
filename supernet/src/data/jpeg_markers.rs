//! The markers of a JPEG stream.

/// Iterates over the markers of a JPEG stream (ITU T.81 annex B) as `(marker, segment without its length)`.
pub(super) struct JpegMarkers<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> JpegMarkers<'a> {
    pub fn next(&mut self) -> Option<(u8, &'a [u8])> {
        loop {
            // Between segments the next byte is 0xff; inside a scan this skips entropy-coded data.
            self.at += self.bytes.get(self.at..)?.iter().position(|&b| b == 0xff)?;
            while *self.bytes.get(self.at)? == 0xff {
                self.at += 1;
            }
            let marker = self.bytes[self.at];
            self.at += 1;
            match marker {
                // A stuffed zero, TEM, restart markers and a nested start have no segment.
                0x00 | 0x01 | 0xd0..=0xd8 => continue,
                0xd9 => return Some((marker, &[])),
                _ => {
                    let body = self.bytes.get(self.at..)?;
                    let length = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?])).max(2);
                    self.at += length;
                    return Some((marker, &body[2..length.min(body.len())]));
                }
            }
        }
    }
}
