//! Programs written by hand, right and wrong.

use super::*;

fn error(bytes: &[u8]) -> String {
    read(bytes, 100).unwrap_err()
}

#[test]
fn values_containers_and_the_memo() {
    // {'a': [1, -2], 'b': (None, True)}; the list is stored as 7 and used again as 'c'.
    let bytes = b"\x80\x02}(X\x01\0\0\0a]q\x07(K\x01J\xfe\xff\xff\xffeX\x01\0\0\0bN\x88\x86X\x01\0\0\0ch\x07u.rest";
    let (value, pickle, length) = read(bytes, 0).unwrap();
    assert_eq!((value, length), (Value::Dict(0), bytes.len() - 4));
    assert_eq!(pickle.lists, [[Value::Int(1), Value::Int(-2)]]);
    assert_eq!(pickle.tuples, [[Value::None, Value::Bool(true)]]);
    let keys: Vec<_> = pickle.dicts[0].iter().map(|(key, _)| key.clone()).collect();
    assert_eq!(keys, ["a", "b", "c"].map(|k| Value::Text(k.into())));
    assert_eq!(pickle.dicts[0][2].1, Value::List(0));
    // The magic number of the older format, ten bytes.
    assert_eq!(read(b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", 0).unwrap().0, Value::Int(0x1950a86a20f9469cfc6c));
    assert_eq!(read(b"\x8a\x01\xff.", 0).unwrap().0, Value::Int(-1));
}

#[test]
fn code_is_refused_by_name() {
    let found = error(b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.");
    assert!(found.contains("'os.system'") && found.contains("byte 102"), "{found}");
    let found = error(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
    assert!(found.contains("'builtins.eval'"), "{found}");
    // Older opcodes that call: INST, OBJ, NEWOBJ, and extension codes.
    for opcode in [b'i', b'o', 0x81, 0x92, 0x82] {
        assert!(error(&[b'(', opcode, b'.']).contains("opcode"), "{opcode}");
    }
    assert!(error(b"(K\x01K\x02tb.").contains("attributes"));
}

#[test]
fn broken_programs_are_errors() {
    for (bytes, reason) in [
        (&b""[..], "1 more bytes"),
        (b"N", "1 more bytes"),
        (b".", "empty stack"),
        (b"NN.", "left over"),
        (b"t.", "mark"),
        (b"N(0.", "opcode"),
        (b"N(.", "across a mark"),
        (b"h\x01.", "recalls value 1"),
        (b"X\xff\xff\xff\xffab", "4294967295 more bytes"),
        (b"X\x02\0\0\0\xff\xff.", "UTF-8"),
        (b"}NNNtu.", "mark"),
        (b"}(Nu.", "key without a value"),
        (b"N(Ne.", "appends to None"),
        (b"NNR.", "not a tuple"),
        (b"N)R.", "a call of None"),
        (b"K\x01Q.", "persistent id"),
        (b"\x8a\x11aaaaaaaaaaaaaaaaa.", "17 bytes"),
        (b"\x80\x07N.", "protocol 7"),
        (b"cos", "without end"),
    ] {
        assert!(error(bytes).contains(reason), "{bytes:?}: {}", error(bytes));
    }
}

/// A tensor of the given shape, strides and offset in a storage of `elements` floats.
fn tensor(shape: &[i32], strides: &[i32], offset: i32, elements: i32) -> Result<View, String> {
    let integer = |value: i32| [&b"J"[..], &value.to_le_bytes()].concat();
    let tuple =
        |values: &[i32]| [b"(".to_vec(), values.iter().flat_map(|&v| integer(v)).collect(), b"t".to_vec()].concat();
    let program = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
            .to_vec(),
        integer(elements),
        b"tQ".to_vec(),
        integer(offset),
        tuple(shape),
        tuple(strides),
        b"\x89}tR.".to_vec(),
    ]
    .concat();
    read(&program, 0).map(|(value, pickle, _)| {
        assert_eq!(value, Value::Tensor(0));
        pickle.tensors[0].clone()
    })
}

#[test]
fn tensors_lie_inside_their_storage() {
    let view = tensor(&[2, 3], &[3, 1], 4, 10).unwrap();
    assert_eq!((view.shape, view.strides, view.offset), (vec![2, 3], vec![3, 1], 4));
    assert!(tensor(&[], &[], 0, 1).is_ok());
    assert!(tensor(&[0, 5], &[5, 1], 0, 0).is_ok());
    for (shape, strides, offset, elements) in [
        (&[2, 3][..], &[3, 1][..], 5, 10),
        (&[11], &[0], 0, 10),
        (&[i32::MAX, i32::MAX, i32::MAX], &[i32::MAX, i32::MAX, 1], 0, 10),
        (&[2], &[i32::MAX], 0, 10),
    ] {
        assert!(tensor(shape, strides, offset, elements).unwrap_err().contains("does not fit"));
    }
    assert!(tensor(&[-2], &[1], 0, 10).unwrap_err().contains("not counts"));
    assert!(tensor(&[2], &[1], 0, -1).unwrap_err().contains("elements"));
    assert!(tensor(&[1; 9], &[1; 9], 0, 10).unwrap_err().contains("shape"));
}
