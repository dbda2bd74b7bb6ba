[
  inputs: ["{mix,mix_compilers,.formatter}.exs", "{lib,test}/**/*.{ex,exs}"],
  line_length: 98
]
