"""Files that come with the library: atlas, landmarks, labels, directions, template, small weights."""
