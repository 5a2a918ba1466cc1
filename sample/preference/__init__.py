"""Human preference between two folders of pictures: a blind page, and what its votes say."""
