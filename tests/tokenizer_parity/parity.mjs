// Runs the browser's tokenizer for tests/test_tokenizer.py, set up as the page sets it up.
// stdin: JSON {tokenizer: path of a tokenizer.json, strings: [text], sequences: [[id]]}
// stdout: JSON {ids: [[id]] of the strings, texts: [text] of the sequences}
import { readFileSync } from 'node:fs';
import { Tokenizer } from '@huggingface/tokenizers';

const job = JSON.parse(readFileSync(0, 'utf8'));
// clean_up_tokenization_spaces is on by default in this library and would eat spaces before punctuation.
const tokenizer = new Tokenizer(JSON.parse(readFileSync(job.tokenizer, 'utf8')), { clean_up_tokenization_spaces: false });
const encode = (text) => tokenizer.encode(text, { add_special_tokens: false }).ids;
// decode refuses an empty list.
const decode = (ids) => (ids.length ? tokenizer.decode(ids, { skip_special_tokens: true }) : '');
process.stdout.write(JSON.stringify({ ids: job.strings.map(encode), texts: job.sequences.map(decode) }));
