#![no_main]

blockferry_fuzz::target!("session_receiver");
