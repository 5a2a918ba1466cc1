// How a PNG was made: the JSON that unclip writes into its "unclip" text.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MAX_RECORD = 8 << 20;

// The record of a file, or null where it has none.
export async function recordOf(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (SIGNATURE.some((byte, at) => bytes[at] !== byte)) return null;
  const view = new DataView(bytes.buffer);
  const text = new TextDecoder();
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const kind = text.decode(bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IEND") return null;
    if (kind === "iTXt" && length < MAX_RECORD && text.decode(content.subarray(0, 7)) === "unclip\0") {
      return parsed(content.subarray(7), text);
    }
    at += 12 + length;
  }
  return null;
}

// After the keyword: a flag of compression, its method, a language, 0, a translated keyword, 0.
function parsed(content, text) {
  if (content[0] !== 0) return null;
  let at = 2;
  for (let zeros = 0; zeros < 2 && at < content.length; at++) zeros += content[at] === 0;
  try {
    const record = JSON.parse(text.decode(content.subarray(at)));
    return record && typeof record === "object" && !Array.isArray(record) ? record : null;
  } catch {
    return null;
  }
}
