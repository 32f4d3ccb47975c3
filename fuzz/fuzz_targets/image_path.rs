#![no_main]

blockferry_fuzz::target!("image_path");
