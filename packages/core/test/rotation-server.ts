/**
 * A server of one device, as scripted as a test needs it: it judges signatures and proofs as a real one does, knows one device and
 * its keys, and can lose, spoil or hold back what it is asked or what it answers.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { fromBase64, utf8 } from '@keyguard/core/bytes';
import { rotationProofText } from '@keyguard/core/canonical';
import { parsePublicJwk, thumbprint } from '@keyguard/core/keys';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { PublicJwk } from '@keyguard/core/seams';
import { readSignedHead, verifySignature } from '@keyguard/core/verify';

export interface Answer {
  readonly status: number;
  readonly body: unknown;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Fault {
  readonly route: 'rotate' | 'status' | 'call';
  /** Whether the request is carried out all the same: `later` means when {@link RotationServer.deliver} says so. */
  readonly carriedOut: boolean | 'later';
  /** What is answered in place of the truth; `null` closes the connection. */
  readonly answer: Answer | null;
}

export interface Received {
  readonly route: string;
  readonly keyId: string;
  readonly body: Uint8Array<ArrayBuffer>;
  readonly headers: IncomingMessage['headers'];
}

export interface RotationServer {
  readonly origin: string;
  readonly received: Received[];
  /** The states of the keys that this device ever had. */
  readonly keys: Map<string, { readonly publicKey: PublicJwk; state: 'current' | 'retiring' | 'retired' }>;
  readonly codes: Set<string>;
  /** Each is used up by the first request to its route. */
  readonly faults: Fault[];
  /** Refuses all times but this one, in Unix seconds. */
  timeSeconds: number | null;
  adopt(publicKey: PublicJwk): Promise<void>;
  /** Ends the time in which a key that was replaced still signs. */
  retire(): void;
  /** Carries out what was held back. */
  deliver(): Promise<void>;
  currentKeys(): string[];
  close(): Promise<void>;
}

const primitives = webCryptoPrimitives();
const refuse = (status: number, code: string): Answer => ({ status, body: { code, detail: `refused: ${code}` } });

export async function startRotationServer(): Promise<RotationServer> {
  const received: Received[] = [];
  const keys: RotationServer['keys'] = new Map();
  const codes = new Set<string>();
  const faults: Fault[] = [];
  const held: (() => Promise<Answer>)[] = [];

  async function judge(request: IncomingMessage, body: Uint8Array<ArrayBuffer>): Promise<Answer> {
    const head = readSignedHead({ method: request.method!, target: request.url!, rawHeaders: request.rawHeaders }, [new URL(scripted.origin).host]);
    if (scripted.timeSeconds !== null && head.createdSeconds !== scripted.timeSeconds) {
      return { ...refuse(401, 'timestamp_out_of_window'), headers: { 'x-keyguard-time': String(scripted.timeSeconds) } };
    }
    const signer = keys.get(head.keyId);
    if (signer === undefined) return refuse(401, 'signature_invalid');
    const isRotation = request.url!.endsWith('/rotate');
    try {
      await verifySignature(head, body, await primitives.importPublicKey(signer.publicKey), isRotation ? 'keyguard-rotate-v1' : 'keyguard-v1', primitives);
    } catch {
      return refuse(401, 'signature_invalid');
    }
    if (request.url!.endsWith('/status')) return { status: 200, body: { device_id: 'd', key_id: head.keyId, status: 'active', key_state: signer.state } };
    if (signer.state === 'retired') return refuse(401, 'signature_invalid');
    if (!isRotation) return { status: 200, body: { signedBy: head.keyId } };

    const { jwk, proof, code, ...rest } = JSON.parse(Buffer.from(body).toString()) as Record<string, unknown>;
    const publicKey = parsePublicJwk(jwk);
    const newKeyId = await thumbprint(publicKey, primitives);
    const text = rotationProofText({ oldKeyId: head.keyId, newKeyId, timestamp: String(head.createdSeconds), nonce: head.nonce });
    const proven = await primitives.verify(await primitives.importPublicKey(publicKey), utf8(text), fromBase64(proof as string)!);
    if (!proven || Object.keys(rest).length > 0) return refuse(401, 'signature_invalid');
    const done: Answer = { status: 200, body: { device_id: 'd', key_id: newKeyId, status: 'active' } };
    if (signer.state === 'retiring') return keys.get(newKeyId)?.state === 'current' ? done : refuse(403, 'rotation_rejected');
    if (keys.has(newKeyId)) return refuse(409, 'key_exists');
    if (!codes.delete(code as string)) return refuse(403, 'rotation_rejected');
    scripted.retire();
    signer.state = 'retiring';
    keys.set(newKeyId, { publicKey, state: 'current' });
    return done;
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of request) chunks.push(chunk as Buffer);
    const body = new Uint8Array(Buffer.concat(chunks));
    const route = /\/api\/keyguard\/(rotate|status)$/.exec(request.url!)?.[1] ?? 'call';
    received.push({ route, keyId: String(request.headers['x-keyguard-key-id']), body, headers: request.headers });
    const at = faults.findIndex((fault) => fault.route === route);
    const fault = at < 0 ? undefined : faults.splice(at, 1)[0]!;
    if (fault?.carriedOut === 'later') held.push(() => judge(request, body));
    const truth = fault === undefined || fault.carriedOut === true ? await judge(request, body) : null;
    const told = fault === undefined ? truth : fault.answer;
    if (told === null) {
      request.socket.destroy();
      return;
    }
    const payload = typeof told.body === 'string' ? told.body : JSON.stringify(told.body);
    response.writeHead(told.status, { 'content-type': typeof told.body === 'string' ? 'text/html' : 'application/problem+json', ...told.headers }).end(payload);
  }

  const server: Server = createServer((request, response) => void answer(request, response));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const scripted: RotationServer = {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    received,
    keys,
    codes,
    faults,
    timeSeconds: null,
    async adopt(publicKey) {
      keys.set(await thumbprint(publicKey, primitives), { publicKey, state: 'current' });
    },
    retire() {
      for (const key of keys.values()) if (key.state === 'retiring') key.state = 'retired';
    },
    async deliver() {
      for (const carryOut of held.splice(0)) await carryOut();
    },
    currentKeys: () => [...keys].filter(([, { state }]) => state === 'current').map(([keyId]) => keyId),
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections();
        server.close(() => resolve());
      }),
  };
  return scripted;
}
