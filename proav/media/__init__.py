"""Files and arrays: reading and writing clips (`container`), sound as mel images and back (`melframes`). Knows neither models nor Ray."""
