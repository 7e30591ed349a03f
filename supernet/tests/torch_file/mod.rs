//! Writes files like `torch.save`, byte by byte, so that tests can also write broken ones.

/// A tensor: name, shape and f32 values.
pub type Named = (String, Vec<usize>, Vec<f32>);

/// Content of a zip archive: name and bytes of each entry.
pub type Entries = Vec<(String, Vec<u8>)>;

/// The entries of a checkpoint `{"state_dict": OrderedDict(...)}`.
pub fn entries(tensors: &[Named]) -> Entries {
    let mut entries = vec![("supernet/data.pkl".to_string(), program(tensors))];
    for (index, (_, _, values)) in tensors.iter().enumerate() {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        entries.push((format!("supernet/data/{index}"), bytes));
    }
    entries.push(("supernet/version".into(), b"3\n".to_vec()));
    entries
}

/// The pickle, in which each tensor covers a whole storage.
pub fn program(tensors: &[Named]) -> Vec<u8> {
    let mut out = b"\x80\x02}q\x00".to_vec();
    text(&mut out, "state_dict");
    out.extend(b"ccollections\nOrderedDict\n)R(");
    for (index, (name, shape, values)) in tensors.iter().enumerate() {
        text(&mut out, name);
        let strides: Vec<usize> = (0..shape.len()).map(|dim| shape[dim + 1..].iter().product()).collect();
        tensor(&mut out, &index.to_string(), values.len(), shape, &strides);
    }
    out.extend(b"us.");
    out
}

/// Entries of a checkpoint as training programs write it: an epoch, and tensors in dictionaries of these names.
pub fn wrapped(dictionaries: &[(&str, Vec<Named>)]) -> Entries {
    let mut program = b"\x80\x02}".to_vec();
    text(&mut program, "epoch");
    program.extend(b"K\x05s");
    let mut storages: Entries = Vec::new();
    for (name, tensors) in dictionaries {
        text(&mut program, name);
        program.extend(b"}");
        for (name, shape, values) in tensors {
            text(&mut program, name);
            let strides: Vec<usize> = (0..shape.len()).map(|dim| shape[dim + 1..].iter().product()).collect();
            tensor(&mut program, &storages.len().to_string(), values.len(), shape, &strides);
            program.extend(b"s");
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            storages.push((format!("supernet/data/{}", storages.len()), bytes));
        }
        program.extend(b"s");
    }
    program.extend(b".");
    [vec![("supernet/data.pkl".to_string(), program)], storages].concat()
}

/// `_rebuild_tensor_v2((storage), 0, shape, strides, False, OrderedDict())`
pub fn tensor(out: &mut Vec<u8>, key: &str, elements: usize, shape: &[usize], strides: &[usize]) {
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(b"ctorch\nFloatStorage\n");
    text(out, key);
    text(out, "cpu");
    integer(out, elements);
    out.extend(b"tQK\x00(");
    shape.iter().for_each(|&size| integer(out, size));
    out.extend(b"t(");
    strides.iter().for_each(|&stride| integer(out, stride));
    out.extend(b"t\x89ccollections\nOrderedDict\n)RtR");
}

/// A string.
pub fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

/// An integer as eight bytes.
pub fn integer(out: &mut Vec<u8>, value: usize) {
    out.extend(b"\x8a\x08");
    out.extend((value as u64).to_le_bytes());
}

/// A zip archive with stored entries.
pub fn zip(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        // Version, flags, method, time, date; checksum and sizes.
        let mut common = vec![20u8, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend(crc32(bytes).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((bytes.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        // Comment, disk, attributes.
        directory.extend([0; 10]);
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(name.as_bytes());
        file.extend(bytes);
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\x00\x00\x00\x00");
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
