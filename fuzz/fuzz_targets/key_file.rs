#![no_main]

blockferry_fuzz::target!("key_file");
