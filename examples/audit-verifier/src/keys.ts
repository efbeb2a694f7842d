/** MAC keys as auditors are given them: one a line, `<key id>=<base64 of 32 bytes>`. They are secret. */
import { webCryptoMacKey } from '@keyguard/core/audit';
import { fromBase64 } from '@keyguard/core/bytes';
import type { AuditMacKey } from '@keyguard/core/seams';

/** A key or an option that the person who runs the verifier gave wrongly. The message names no key. */
export class UnreadableInput extends Error {
  override readonly name = 'UnreadableInput';
}

const LINE = /^([^=\s][^=]*)=([A-Za-z0-9+/]{43}=)$/;

/** @throws UnreadableInput */
export async function readMacKeys(text: string): Promise<ReadonlyMap<string, AuditMacKey>> {
  const keys = new Map<string, AuditMacKey>();
  for (const line of text.split('\n').map((each) => each.trim())) {
    if (line === '' || line.startsWith('#')) continue;
    const [, keyId = '', base64 = ''] = LINE.exec(line) ?? [];
    const key = fromBase64(base64);
    if (key === null || key.length !== 32 || keys.has(keyId)) {
      throw new UnreadableInput('MAC keys are given one a line, each id once: <key id>=<base64 of 32 bytes>.');
    }
    keys.set(keyId, await webCryptoMacKey({ keyId, key }));
  }
  return keys;
}

/** The verifier keys in `text`, one a line. */
export function readVerifierKeys(text: string): readonly string[] {
  return text.split('\n').map((line) => line.trim()).filter((line) => line !== '' && !line.startsWith('#'));
}
