"""Speed, beside the peer it is compared with, in the same run; results/ keeps what was measured, by machine and date."""
