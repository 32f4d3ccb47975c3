#![no_main]

blockferry_fuzz::target!("frame_stream");
