#![no_main]

blockferry_fuzz::target!("encrypted_chunk");
