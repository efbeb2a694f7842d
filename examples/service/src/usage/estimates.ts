/** What was probably used where a provider has not said it: by bytes, on the high side, and always marked as what it is. */

// A rule of thumb for English text in every tokenizer.
const BYTES_PER_TOKEN = 4;
// An event of a stream bears some hundred bytes around a word or two.
const STREAMED_BYTES_PER_TOKEN = 32;

// A second of speech, or a tile of a picture, is some ten or hundred tokens.
const UPLOADED_BYTES_PER_TOKEN = 1024;

/** Of a body of that type; `null`: of none. */
export function estimatedInput(requestBytes: number, contentType: string | null): number {
  const isUpload = contentType !== null && /^multipart\//i.test(contentType);
  return Math.ceil(requestBytes / (isUpload ? UPLOADED_BYTES_PER_TOKEN : BYTES_PER_TOKEN));
}

export function estimatedOutput(responseBytes: number, isStream: boolean): number {
  return Math.ceil(responseBytes / (isStream ? STREAMED_BYTES_PER_TOKEN : BYTES_PER_TOKEN));
}
