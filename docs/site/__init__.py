"""The site: pages copied, reference pages made from the code, then zensical."""
