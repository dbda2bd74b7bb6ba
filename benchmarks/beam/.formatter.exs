[inputs: ["*.ex"], line_length: 98]
