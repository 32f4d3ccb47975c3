#![no_main]

blockferry_fuzz::target!("cloud_body");
