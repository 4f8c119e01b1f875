"""Ray for every job: joining or starting a Ray, and a cluster's resources. Ray is imported when needed."""
