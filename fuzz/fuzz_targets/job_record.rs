#![no_main]

blockferry_fuzz::target!("job_record");
