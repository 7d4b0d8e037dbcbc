//! Parquet rows: a file as it is, or a good one changed.

use super::{folder, input::Input, used};
use fourbit::data::{DataOptions, Dataset};

const GOOD: [&[u8]; 3] = [
    include_bytes!("../fixtures/chats.parquet"),
    include_bytes!("../fixtures/chats.zstd.parquet"),
    include_bytes!("../fixtures/chats.brotli.parquet"),
];

pub fn parquet(data: &[u8]) {
    let mut file = data.to_vec();
    if !data.starts_with(b"PAR1") {
        let mut input = Input::new(data);
        file = input.choose(&GOOD).to_vec();
        input.changes(|input| input.patch(&mut file));
    }
    if !file.starts_with(b"PAR1") {
        return;
    }
    let folder = folder(&[("rows.parquet", &file)]);
    let options = DataOptions { max_row_bytes: 1 << 16, ..DataOptions::new(64, 1024) };
    match Dataset::load(folder.path().join("rows.parquet"), None, &options) {
        Ok(rows) => used(rows.len()),
        Err(error) => assert!(error.to_string().contains("rows.parquet"), "{error}"),
    }
}
