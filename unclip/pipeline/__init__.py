"""From a caption to pictures: UnCLIPPipeline, its arguments, and the folder it is kept in."""
