#![no_main]

blockferry_fuzz::target!("keyring");
