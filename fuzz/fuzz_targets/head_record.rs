#![no_main]

blockferry_fuzz::target!("head_record");
