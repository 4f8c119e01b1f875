"""Ray for every job: joining or starting one, and what a cluster has. Ray is imported only when needed."""
