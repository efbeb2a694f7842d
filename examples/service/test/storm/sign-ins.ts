/**
 * A process of its own that signs in, many at once, each from another address: its work must not be in the way of what is measured
 * beside it. Told by a line `{"origin","count","email","password"}`, it answers with a line of how many got which status.
 */
import { request as httpRequest } from 'node:http';
import { createInterface } from 'node:readline';

interface Order {
  readonly origin: string;
  readonly count: number;
  readonly email: string;
  readonly password: string;
}

let address = 0;

function signIn({ origin, email, password }: Order): Promise<number> {
  address += 1;
  const body = JSON.stringify({ email, password });
  const headers = {
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
    'x-forwarded-for': `10.${(address >> 16) & 255}.${(address >> 8) & 255}.${address & 255}`,
  };
  return new Promise((resolve) => {
    const sent = httpRequest(`${origin}/api/auth/sign-in/email`, { method: 'POST', headers, agent: false }, (response) => {
      response.resume().on('end', () => resolve(response.statusCode ?? 0));
    });
    sent.on('error', () => resolve(0)).end(body);
  });
}

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as Order;
  const statuses = await Promise.all(Array.from({ length: order.count }, () => signIn(order)));
  const counts: Record<string, number> = {};
  for (const status of statuses) counts[status] = (counts[status] ?? 0) + 1;
  process.stdout.write(`${JSON.stringify({ 'sign-ins': counts })}\n`);
}
