#![no_main]

blockferry_fuzz::target!("zstd_chunk");
