"""The layouts in which others published weights, one file each, read as strictly as ours."""
