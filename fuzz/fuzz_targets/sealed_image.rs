#![no_main]

blockferry_fuzz::target!("sealed_image");
