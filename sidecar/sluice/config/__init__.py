"""The limits document: types, strict parsing, merge, diff. Pure: text in, values or every mistake out."""
