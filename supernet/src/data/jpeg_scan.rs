//! Detects sequential JPEG files whose picture data ends early (ITU T.81, annexes C and F).
//!
//! A decoder silently fills missing data with grey or noise. Here only code lengths are followed, and no value is
//! computed. Progressive, arithmetic and lossless files are not checked.

use super::jpeg_markers::JpegMarkers;

/// Describes the fault in the picture data of a JPEG file; `None` if there is none, or none that can be detected.
///
/// An incomplete last block is accepted, since some writers cut the last byte.
pub(super) fn fault(bytes: &[u8]) -> Option<String> {
    let mut markers = JpegMarkers { bytes, at: 2 };
    let mut frame = None;
    let mut tables: [Option<Table>; 8] = Default::default();
    let mut interval = 0;
    while let Some((marker, body)) = markers.next() {
        match marker {
            0xc0 | 0xc1 => frame = Some(Frame::read(body)?),
            0xc4 => read_tables(body, &mut tables)?,
            // Frames of other coding processes.
            0xc2..=0xcf => return None,
            0xdd => interval = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?])),
            0xda => {
                let scan = Scan::read(body, frame.as_ref()?, &tables)?;
                let total = scan.columns * scan.rows;
                match scan.follow(&bytes[markers.at.min(bytes.len())..], interval) {
                    Outcome::Whole | Outcome::Unknown => {}
                    Outcome::Ended(done) if done + 1 >= total => {}
                    Outcome::Ended(done) => {
                        return Some(format!(
                            "is a truncated JPEG image: its picture data ends after {done} of {total} blocks"
                        ));
                    }
                    Outcome::Damaged(done) => {
                        return Some(format!(
                            "is a damaged JPEG image: its picture data cannot be read after {done} of {total} blocks"
                        ));
                    }
                }
            }
            0xd9 => return None,
            _ => {}
        }
    }
    None
}

struct Frame {
    width: usize,
    height: usize,
    /// Identifier, horizontal and vertical sampling factor of each component.
    components: Vec<(u8, usize, usize)>,
}

impl Frame {
    fn read(body: &[u8]) -> Option<Frame> {
        let side = |at: usize| Some(usize::from(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?])));
        let component = |c: &[u8]| (c[0], usize::from(c[1] >> 4), usize::from(c[1] & 15));
        let components: Vec<_> = body.get(6..)?.chunks_exact(3).map(component).collect();
        let frame = Frame { width: side(3)?, height: side(1)?, components };
        let known = frame.width > 0 && frame.height > 0 && frame.components.len() == usize::from(body[5]);
        (known && frame.components.iter().all(|&(_, h, v)| (1..=4).contains(&h) && (1..=4).contains(&v)))
            .then_some(frame)
    }
}

/// A Huffman table: for each code length the first code, the number of codes and the index of their first symbol.
struct Table {
    lengths: [(u32, u32, usize); 16],
    symbols: Vec<u8>,
}

/// Reads the tables of a segment; those of DC differences get indices 0 to 3, those of AC coefficients 4 to 7.
fn read_tables(mut body: &[u8], tables: &mut [Option<Table>; 8]) -> Option<()> {
    while let [place, rest @ ..] = body {
        let counts = rest.get(..16)?;
        let (mut code, mut start) = (0, 0);
        let lengths = std::array::from_fn(|i| {
            let count = u32::from(counts[i]);
            let length = (code, count, start);
            code = (code + count) << 1;
            start += count as usize;
            length
        });
        let symbols = rest.get(16..16 + start)?.to_vec();
        *tables.get_mut(usize::from(place >> 4) * 4 + usize::from(place & 3))? = Some(Table { lengths, symbols });
        body = &rest[16 + start..];
    }
    Some(())
}

/// Blocks of a scan: the tables of each block of a unit, and the numbers of units per row and per column.
struct Scan<'a> {
    blocks: Vec<(&'a Table, &'a Table)>,
    columns: usize,
    rows: usize,
}

enum Outcome {
    Whole,
    /// The data ended after this number of units.
    Ended(usize),
    /// A code that is in no table came after this number of units.
    Damaged(usize),
    /// A restart came too early, which decoders tolerate.
    Unknown,
}

impl<'a> Scan<'a> {
    fn read(body: &[u8], frame: &Frame, tables: &'a [Option<Table>; 8]) -> Option<Scan<'a>> {
        let count = usize::from(*body.first()?);
        let entries: Vec<&[u8]> = body.get(1..1 + 2 * count)?.chunks_exact(2).collect();
        let most = |side: fn(&(u8, usize, usize)) -> usize| frame.components.iter().map(side).max();
        let (most_h, most_v) = (most(|c| c.1)?, most(|c| c.2)?);
        let mut blocks = Vec::new();
        let (mut columns, mut rows) = (frame.width.div_ceil(8 * most_h), frame.height.div_ceil(8 * most_v));
        for entry in entries {
            let &(_, h, v) = frame.components.iter().find(|component| component.0 == entry[0])?;
            let dc = tables.get(usize::from(entry[1] >> 4) & 3)?.as_ref()?;
            let ac = tables.get(4 + (usize::from(entry[1]) & 3))?.as_ref()?;
            if count == 1 {
                // In a scan of its own, a component has its own blocks, one per unit.
                columns = (frame.width * h).div_ceil(most_h).div_ceil(8);
                rows = (frame.height * v).div_ceil(most_v).div_ceil(8);
                blocks.push((dc, ac));
            } else {
                blocks.extend(std::iter::repeat_n((dc, ac), h * v));
            }
        }
        (!blocks.is_empty()).then_some(Scan { blocks, columns, rows })
    }

    fn follow(&self, data: &[u8], interval: usize) -> Outcome {
        let mut bits = Bits { data, at: 0, byte: 0, left: 0 };
        for unit in 0..self.columns * self.rows {
            if interval > 0 && unit > 0 && unit.is_multiple_of(interval) && !bits.restart() {
                // Data in place of the marker is not an end.
                return match bits.marker() {
                    None if bits.at < data.len() => Outcome::Unknown,
                    _ => bits.outcome(Stop::End, unit),
                };
            }
            for (dc, ac) in &self.blocks {
                if let Err(stop) = bits.block(dc, ac) {
                    return bits.outcome(stop, unit);
                }
            }
        }
        Outcome::Whole
    }
}

enum Stop {
    /// A marker or the end of the file.
    End,
    BadCode,
}

/// Bits of entropy-coded data, most significant first, up to the next marker.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    byte: u8,
    left: u32,
}

impl Bits<'_> {
    fn outcome(&self, stop: Stop, done: usize) -> Outcome {
        match (stop, self.marker()) {
            (Stop::BadCode, _) => Outcome::Damaged(done),
            (Stop::End, None | Some(0xd9)) => Outcome::Ended(done),
            (Stop::End, Some(_)) => Outcome::Unknown,
        }
    }

    /// The next marker, if the data stops here.
    fn marker(&self) -> Option<u8> {
        let rest = self.data.get(self.at..)?;
        let after = rest.iter().position(|&byte| byte != 0xff)?;
        (after > 0 && rest[after] != 0).then(|| rest[after])
    }

    /// Skips a restart marker; false if there is none.
    fn restart(&mut self) -> bool {
        self.left = 0;
        if !matches!(self.marker(), Some(0xd0..=0xd7)) {
            return false;
        }
        self.at += self.data[self.at..].iter().take_while(|&&byte| byte == 0xff).count() + 1;
        true
    }

    fn bit(&mut self) -> Result<u32, Stop> {
        if self.left == 0 {
            self.byte = *self.data.get(self.at).ok_or(Stop::End)?;
            if self.byte == 0xff {
                // A byte of ones is followed by a zero; anything else is a marker.
                if self.data.get(self.at + 1) != Some(&0) {
                    return Err(Stop::End);
                }
                self.at += 1;
            }
            self.at += 1;
            self.left = 8;
        }
        self.left -= 1;
        Ok(u32::from(self.byte) >> self.left & 1)
    }

    fn skip(&mut self, count: u8) -> Result<(), Stop> {
        (0..count).try_for_each(|_| self.bit().map(drop))
    }

    fn symbol(&mut self, table: &Table) -> Result<u8, Stop> {
        let mut code = 0;
        for &(first, count, start) in &table.lengths {
            code = code << 1 | self.bit()?;
            if code.wrapping_sub(first) < count {
                return table.symbols.get(start + (code - first) as usize).copied().ok_or(Stop::BadCode);
            }
        }
        Err(Stop::BadCode)
    }

    /// Skips the 64 coefficients of a block.
    fn block(&mut self, dc: &Table, ac: &Table) -> Result<(), Stop> {
        let size = self.symbol(dc)?;
        self.skip(size.min(16))?;
        let mut coefficient = 1;
        while coefficient < 64 {
            let symbol = self.symbol(ac)?;
            let (zeros, size) = (symbol >> 4, symbol & 15);
            if size == 0 && zeros < 15 {
                break;
            }
            coefficient += zeros + 1;
            if coefficient > 64 {
                return Err(Stop::BadCode);
            }
            self.skip(size)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::fault;
    use crate::data::decode::tests::{cmyk_jpeg, jpeg};

    fn noise(count: usize) -> Vec<u8> {
        (0..count).map(|i| (i * i * 7919 % 251) as u8).collect()
    }

    /// Offset of the picture data.
    fn start(bytes: &[u8]) -> usize {
        bytes.windows(2).position(|pair| pair == [0xff, 0xda]).unwrap() + 14
    }

    #[test]
    fn whole_pictures_have_no_fault() {
        for (width, height) in [(1, 1), (7, 40), (8, 8), (64, 64), (90, 33)] {
            let bytes = jpeg(width, height, &noise((width * height * 3) as usize));
            assert_eq!(fault(&bytes), None, "{width}x{height}");
            // A missing end mark is detected elsewhere, and a cut last block is accepted.
            assert_eq!(fault(&bytes[..bytes.len() - 3]), None);
        }
        assert_eq!(fault(&cmyk_jpeg()), None);
        assert_eq!(fault(b"\xff\xd8"), None);
    }

    #[test]
    fn pictures_that_end_early_with_an_end_mark_are_told() {
        let bytes = jpeg(64, 64, &noise(64 * 64 * 3));
        for parts in [2, 3, 10] {
            let cut = start(&bytes) + (bytes.len() - start(&bytes)) / parts;
            let reason = fault(&[&bytes[..cut], &[0xff, 0xd9]].concat()).unwrap();
            assert!(reason.contains("truncated") && reason.contains("of 64 blocks"), "{reason}");
        }
    }

    #[test]
    fn codes_that_no_table_has_are_told() {
        let mut bytes = jpeg(64, 64, &noise(64 * 64 * 3));
        let middle = start(&bytes) + 400;
        // Sixteen ones or more are a code of no table.
        for at in (middle..middle + 12).step_by(2) {
            bytes[at..at + 2].copy_from_slice(&[0xff, 0]);
        }
        assert!(fault(&bytes).unwrap().contains("damaged"));
    }
}
