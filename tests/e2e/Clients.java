import java.io.IOException;
import java.net.Socket;
import java.nio.charset.StandardCharsets;

/** Sends COUNT requests, each on a connection of its own, and prints who answered. */
public class Clients {
    public static void main(String[] arguments) throws IOException {
        String host = arguments[0];
        int port = Integer.parseInt(arguments[1]);
        byte[] request = "GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n"
                .getBytes(StandardCharsets.US_ASCII);
        for (int sent = 0; sent < Integer.parseInt(arguments[2]); sent++) {
            try (Socket socket = new Socket(host, port)) {
                socket.getOutputStream().write(request);
                byte[] answer = socket.getInputStream().readAllBytes();
                String[] parts = new String(answer, StandardCharsets.US_ASCII).split("\r\n\r\n");
                System.out.println(parts[1].strip());
            }
        }
    }
}
