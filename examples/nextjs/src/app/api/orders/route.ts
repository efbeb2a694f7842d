import { fromUtf8 } from '@keyguard/core/bytes';
import { door } from '../../../keyguard.ts';

export const POST = door.guarded(({ device, body }) =>
  Response.json({ by: device.label, bytes: body.length, order: JSON.parse(fromUtf8(body)) as unknown }, { status: 201 }),
);
